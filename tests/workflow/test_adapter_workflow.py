"""A LoRA adapter from the recipe to its folder: jobs, package, report, and what runs again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.models import llama
from helpers.workflow import Project

RECIPE = """\
name: small
extract_lora:
  model: tuned
  base_model: base
  rank: 4
  modules_to_save: [norm]
"""


@pytest.mark.slow
def test_an_adapter_is_made_and_made_again_only_where_it_changes(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "tuned")):
        llama(tmp_path / name, seed, files=2)
    project = Project(tmp_path)
    project.recipe.write_text(RECIPE)
    project.configure(sources={})
    project.build("all")
    loaded = json.loads((tmp_path / "results/small/loaded.json").read_text())
    assert (loaded["passed"], loaded["loaded"]) == (True, "weights")
    results = tmp_path / "results/small"
    folder = results / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["modules_to_save"]) == (4, ["model.norm"])
    assert len(load_file(folder / "adapter_model.safetensors")) == 2 * 21 + 1
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        sha256, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    provenance = json.loads((folder / "provenance.json").read_text())
    assert set(provenance["sources"]) == {"base", "tuned"}
    assert len((results / "report/adapter.tsv").read_text().splitlines()) == 22
    assert not list(results.glob("updates/*.safetensors"))

    done = project.run("all", "-n")
    assert "Nothing to be done" in done.stdout, done.stdout
    project.recipe.write_text(RECIPE.replace("rank: 4", "rank: 2"))
    done = project.run("all", "-n")
    for rule, count in (("build_factors", 2), ("package_adapter", 1), ("report_adapter", 1)):
        assert f"{rule} " in done.stdout, (rule, count, done.stdout)
