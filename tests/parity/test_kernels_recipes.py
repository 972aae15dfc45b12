"""Every method by a recipe: through the plan and the engine, against mergekit's own run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from oracle import differing_bits, run_mergekit, run_shardmerge

from helpers.models import llama
from shardmerge.base.numerics import MERGEKIT
from shardmerge.methods.registry import in_mergekit, method, methods, result_dtype

NAMES = [m.name for m in methods() if in_mergekit(m.name) and m.deterministic]
VALUES = {"t": 0.3, "density": 0.6, "epsilon": 0.1, "select_topk": 0.7, "scale": 1.25, "gamma": 0.1}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [llama(root / name, seed=i, layers=2, files=2) for i, name in enumerate("abcd")]


def write(name: str, checkpoints: list[Path], folder: Path, dtype: str | None) -> Path:
    """Write a recipe of one document for a method, with a value for each parameter."""
    declared = method(name)
    inputs = declared.inputs
    count = inputs.maximum or (inputs.maximum_models or 3) + (inputs.base != "ignored")
    shared, models = {}, [{"model": str(path)} for path in checkpoints[:count]]
    document = {"name": "merged", "merge_method": name, "models": models}
    if inputs.base != "ignored":
        document["base_model"] = str(checkpoints[0])
    for parameter in declared.parameters:
        value = VALUES.get(parameter.name)
        if parameter.scope == "shared" and value is not None and parameter.name != "epsilon":
            shared[parameter.name] = value
        elif parameter.scope != "shared":
            for index, entry in enumerate(models):
                own = 0.4 + 0.3 * index if parameter.name == "weight" else value
                entry.setdefault("parameters", {})[parameter.name] = own
    if shared:
        document["parameters"] = shared
    if dtype:
        document["dtype"] = dtype
    elif result_dtype(name, MERGEKIT, "F16") != "F16":
        document["out_dtype"] = "float16"
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump_all([document], sort_keys=False))
    return recipe


class TestRecipes:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("dtype", [None, "float32"])
    def test_no_bit_differs(
        self, name: str, dtype: str | None, checkpoints: list[Any], tmp_path: Path
    ) -> None:
        recipe = write(name, checkpoints, tmp_path / name, dtype)
        theirs = run_mergekit(recipe, tmp_path / "mergekit")["merged"]
        ours = run_shardmerge(recipe, tmp_path, numerics=MERGEKIT)["merged"]
        assert differing_bits(ours, theirs) == {}

    @pytest.mark.parametrize("name", NAMES)
    def test_float32_is_near(self, name: str, checkpoints: list[Any], tmp_path: Path) -> None:
        recipe = write(name, checkpoints, tmp_path / name, "float32")
        theirs = run_mergekit(recipe, tmp_path / "mergekit")["merged"]
        ours = run_shardmerge(recipe, tmp_path)["merged"]
        for tensor, value in theirs.items():
            near = torch.isclose(ours[tensor], value, rtol=1e-4, atol=1e-6)
            assert near.float().mean() > 0.99, tensor
