"""Quantised sources merged, from recipe to check: as if they had been decoded before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.built_model import Built, merge
from helpers.engine_cases import SMALL, tuned
from helpers.format_cases import decoded, logical_of
from helpers.format_models import MODELS
from shardmerge.engine import decoding

FORMATS = [name for name in MODELS if name != "nothing"]


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoding, "_PIECE", 150)  # elements: pieces end within tensors


def save(name: str, tensors: dict[str, torch.Tensor], config: dict) -> None:
    folder = Path("models", name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "x"} | config))
    names = list(tensors)
    halves = {"1": names[::2], "2": names[1::2]}  # parts of a weight lie in two files
    weight_map = {}
    for number, part in halves.items():
        if part:
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({n: tensors[n].contiguous() for n in part}, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
    text = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def models(case: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Write a quantised model and a plain one with its tensors; return the former decoded."""
    config, tensors = MODELS[case]
    logical = logical_of(tensors, config)
    values = {name: decoded(tensors, one) for name, one in logical.items()}
    values |= {n: t for n, t in tensors.items() if n.endswith(".bias")}
    save("q", tensors, config)
    generator = torch.Generator().manual_seed(7)
    plain = {n: torch.randn(v.shape, generator=generator).to(dtype) for n, v in values.items()}
    save("base", plain, {})
    return values


def built(recipe: dict, **config) -> tuple[Built, dict[str, torch.Tensor]]:
    with tuned(**SMALL):
        made = merge(
            json.dumps(recipe), sources={n: f"models/{n}" for n in ("q", "base")}, **config
        )
    files = (load_file(job.output) for job in made.build.shards)
    return made, {name: tensor for file in files for name, tensor in file.items()}


def alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool(((found == wanted) | (found.isnan() & wanted.isnan())).all())


TASK = {
    "name": "out",
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [{"model": "q", "parameters": {"weight": 0.75}}],
}
ALONE = {"name": "out", "merge_method": "passthrough", "models": [{"model": "q"}]}


@pytest.mark.parametrize("case", FORMATS)
class TestEveryFormat:
    def test_a_task_vector(self, case):
        values = models(case)
        base = {
            n: t for f in Path("models/base").glob("*.safetensors") for n, t in load_file(f).items()
        }
        made, found = built(TASK | {"dtype": "bfloat16"}, deltas="fuse")
        assert found.keys() == values.keys()
        for name, value in values.items():
            delta = (value.float() - base[name].float()).bfloat16().float()
            assert alike(found[name], (base[name].float() + 0.75 * delta).bfloat16())
        assert not made.build.files.get("quantize_config.json")

    def test_alone(self, case):
        """It is saved in bfloat16 where the recipe names no type, and its config is a plain one."""
        values = models(case)
        made, found = built(ALONE)
        for name, value in values.items():
            assert alike(found[name], value if name.endswith(".bias") else value.bfloat16())
        config = json.loads((made.folder / "config.json").read_text())
        assert "quantization_config" not in config
