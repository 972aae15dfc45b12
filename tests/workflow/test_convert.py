"""Pickled weights, converted and merged by the real Snakefile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from oracle import load_folder

from helpers.adapter_cases import CONFIG, factors
from helpers.models import llama
from helpers.pickle_cases import Trap, pickled_model, saved
from helpers.workflow import Project

RECIPE = """\
name: merged
merge_method: linear
models:
  - {model: ./models/old+./models/adapter, parameters: {weight: 0.5}}
  - {model: ./models/new, parameters: {weight: 0.5}}
dtype: float32
"""
Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A pickled model with a pickled adapter, and a newer model, to be merged."""
    project = Project(tmp_path / "project")
    models = project.folder / "models"
    pickled_model(models / "old", files=2)
    llama(models / "new", 7, layers=2)
    (models / "adapter").mkdir()
    (models / "adapter" / "adapter_config.json").write_text(json.dumps(CONFIG))
    saved(models / "adapter", factors({Q: (16, 16)}), "adapter_model.bin")
    project.recipe.write_text(RECIPE)
    project.configure(sources={}, allow_pickle=True)
    return project


class TestConvert:
    def test_convert_then_merge(self, project: Project) -> None:
        refused = project.run("-n")
        assert refused.returncode and "Run `snakemake convert`" in refused.stdout
        listed = project.run("-n", "convert").stdout
        assert re.search(r"^convert_pickle +3$", listed, re.MULTILINE), listed
        project.build("convert")
        assert "Nothing to be done" in project.run("-n", "convert").stdout
        project.build()

        models = project.folder / "models"
        old = {}
        for path in sorted((models / "old").glob("pytorch_model-*.bin")):
            old |= torch.load(path, weights_only=True)
        new = load_folder(models / "new")
        adapter = torch.load(models / "adapter" / "adapter_model.bin", weights_only=True)
        b, a = (adapter[f"base_model.model.{Q}.lora_{part}.weight"] for part in "BA")
        old = {name: value.float() for name, value in old.items()}
        old[f"{Q}.weight"] += 2 * (b @ a)
        merged = load_folder(project.folder / "results" / "merged" / "model")
        for name, value in merged.items():
            assert torch.allclose(value, 0.5 * old[name] + 0.5 * new[name].float(), atol=1e-6), name

        # a pickle that changes is converted again, and nothing is merged before that
        path = models / "old" / "pytorch_model-00001-of-00002.bin"
        torch.save({n: v + 1 for n, v in torch.load(path, weights_only=True).items()}, path)
        assert "Run `snakemake convert`" in project.run("-n").stdout

    @pytest.mark.slow
    def test_what_is_refused(self, project: Project) -> None:
        project.configure(sources={})
        done = project.run("-n")
        assert done.returncode and "allow_pickle: true" in done.stdout
        project.configure(sources={}, allow_pickle=True)
        mark = project.folder / "ran"
        trap = {"w": Trap(mark)}
        saved(project.folder / "models" / "old", trap, "pytorch_model-00002-of-00002.bin")
        done = project.run("convert")
        assert done.returncode
        logs = "".join(p.read_text() for p in (project.folder / "logs").rglob("*.log"))
        assert "holds more than tensors" in logs
        assert not mark.exists()
        converted = project.folder / "resources" / "converted" / "models--old"
        assert not (converted / "conversion.json").exists()
        assert not (converted / "model-00002-of-00002.safetensors").exists()
