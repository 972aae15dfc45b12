"""Probes of models from their text to tables and pages, killed once on the way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from helpers.workflow import HALF_WAY, REPOSITORY, Project

SOURCES = ("miqu-tiny", "midnight-tiny")
TABLE = "results/benchmarks/table.json"


def probed(folder: Path) -> Project:
    demo = REPOSITORY / "config" / "tasks" / "demo"
    probes = {
        "text": str(demo / "text.txt"), "characters": 1024, "context": 256,
        "measure": ["perplexity", "kl"],
    }  # fmt: skip
    values = {
        "recipes": ["recipe.yaml"],
        "max_shard_size": "10MB",
        "silence": ["rope-blend", "norms-summed"],
        "benchmark": {
            "tasks": ["demo_B"], "include_path": str(demo), "limit": 4, "per": "model",
            "probes": probes,
        },
        "resources": {"benchmark_threads": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(HALF_WAY)
    (folder / "cfg.yaml").write_text(yaml.safe_dump(values))
    return Project(folder)


def logits(folder: Path) -> list[Path]:
    return list(folder.glob("results/benchmarks/*/logits.safetensors"))


def announced(project: Project, rule: str) -> int:
    """Return how many jobs of a rule a dry run announces."""
    done = project.run("-n", TABLE)
    assert done.returncode == 0, done.stdout
    found = re.search(rf"^{rule} +(\d+)$", done.stdout, re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.mark.slow
def test_probes_after_a_kill_and_a_new_recipe(tmp_path: Path) -> None:
    project = probed(tmp_path)
    assert project.kill_when(lambda: bool(logits(tmp_path)), "benchmarks")
    project.build("--unlock")
    assert announced(project, "run_tasks") == 3, "no model has its results yet"
    project.build(
        "benchmarks", "results/made/report/divergence.svg", "results/benchmarks/compare.html"
    )
    assert logits(tmp_path) == []

    table = json.loads((tmp_path / TABLE).read_text())
    found = {(c["model"], c["task"]): c["value"] for c in table["cells"] if c["metric"] == "mean"}
    assert all(found["made", f"kl_{name}"] > 0 for name in SOURCES)
    assert ("miqu-tiny", "kl_midnight-tiny") in found
    assert (tmp_path / "results" / "made" / "report" / "divergence.svg").is_file()
    told = (tmp_path / "results" / "made" / "benchmarks" / "table.md").read_text()
    assert "perplexity, kl: 2 passages" in told

    project.recipe.write_text(HALF_WAY.replace("0.5", "0.6"))
    assert announced(project, "run_tasks") == 1, "the merged model is another one"
