"""A recipe with LoRA references, from a loopback Hub to the finished package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import load_folder

from helpers.adapter_cases import factors, write_adapter
from helpers.hub_cases import READER, environment
from helpers.loopback_hub import LoopbackHub
from helpers.models import llama
from helpers.workflow import Project, sha256

RECIPE = """\
name: adapted
merge_method: task_arithmetic
base_model: org/base
models:
  - {model: org/base+org/one@v2, parameters: {weight: 0.5}}
  - model: {model: org/base, lora: org/two}
    parameters: {weight: [0.0, 1.0]}
dtype: float16
"""
DOWN, UP = "mlp.down_proj", "mlp.up_proj"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    root = tmp_path / "hub"
    llama(root / "org" / "base", 3, layers=3, files=3)
    for name, module, shape in (("one", DOWN, (16, 24)), ("two", UP, (24, 16))):
        modules = {f"model.layers.{layer}.{module}": shape for layer in (0, 2)}
        write_adapter(root / "org" / name, factors(modules, seed=len(module)))
    shutil.copytree(root / "org" / "one", root / "org" / "one@v2")
    with LoopbackHub(root) as server:
        yield server


class TestLora:
    def test_from_the_hub_to_the_package(self, hub: LoopbackHub, tmp_path: Path) -> None:
        project = Project(tmp_path / "project")
        project.folder.mkdir()
        project.recipe.write_text(RECIPE)
        project.configure(sources={})
        env = environment(hub, tmp_path / "home", READER)
        project.build("models", env=env | {"PYTHONHASHSEED": "7"})
        self._right(hub, project)

        lock = json.loads((project.folder / "recipe.lock.json").read_text())["sources"]
        assert {key: row.get("role") for key, row in lock.items()} == {
            "org/base": None, "org/one@v2": "adapter", "org/two": "adapter",
        }  # fmt: skip
        model = project.folder / "results" / "adapted" / "model"
        provenance = json.loads((model / "provenance.json").read_text())
        assert provenance["sources"]["org/one@v2"]["role"] == "adapter"
        assert "adapter_model.safetensors" in provenance["sources"]["org/two"]["files"]
        card = (model / "README.md").read_text()
        assert "LoRA adapter" in card and "org/one" in card and "org/two" in card
        verified = json.loads((project.folder / "results" / "adapted" / "verify.json").read_text())
        assert verified["passed"]

        # nothing but the recipe's text decides: another hash seed has nothing to do
        done = project.run("-n", "models", env=env | {"PYTHONHASHSEED": "8"})
        assert "Nothing to be done" in done.stdout, done.stdout

        # an adapter that changes changes the shards that it is in
        before = project.shards("adapted")
        modules = {f"model.layers.2.{UP}": (24, 16)}
        write_adapter(hub.store.root / "org" / "two", factors(modules, seed=9))
        project.build("lock", env=env)
        project.build(env=env)
        after = project.shards("adapted")
        assert [name for name in before if before[name] != after[name]]
        self._right(hub, project)

    @staticmethod
    def _right(hub: LoopbackHub, project: Project) -> None:
        root = hub.store.root / "org"
        base = load_folder(root / "base")
        expected = {name: value.double() for name, value in base.items()}
        for adapter, weights in (("one", {0: 0.5, 2: 0.5}), ("two", {0: 0.0, 2: 1.0})):
            tensors = load_folder(root / adapter)
            for name, a in tensors.items():
                if ".lora_A." in name:
                    b = tensors[name.replace("lora_A", "lora_B")]
                    target = name.removeprefix("base_model.model.").replace(".lora_A", "")
                    layer = int(target.split(".")[2])
                    expected[target] += weights[layer] * 2 * (b.double() @ a.double())
        merged = load_folder(project.folder / "results" / "adapted" / "model")
        assert sorted(merged) == sorted(base)
        for name, value in merged.items():
            error = (value.double() - expected[name]).abs()
            assert (error <= 2**-11 * expected[name].abs() + 2**-24).all(), name

    def test_a_local_adapter_is_never_changed(self, tmp_path: Path) -> None:
        project = Project(tmp_path / "project")
        llama(project.folder / "base", 3)
        folder = write_adapter(project.folder / "lora", factors({f"model.layers.1.{UP}": (24, 16)}))
        before = {path: sha256(path) for path in sorted(folder.iterdir())}
        project.recipe.write_text("merge_method: passthrough\nmodels: [{model: ./base+./lora}]\n")
        project.configure(sources={})
        project.build()
        merged = load_folder(project.folder / "results" / "recipe" / "model")
        base = load_folder(project.folder / "base")
        changed = [name for name in base if not torch.equal(base[name], merged[name])]
        assert changed == [f"model.layers.1.{UP}.weight"]
        assert {path: sha256(path) for path in sorted(folder.iterdir())} == before
