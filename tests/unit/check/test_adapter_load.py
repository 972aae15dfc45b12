"""peft loads adapters that are made here on their base, and tells of what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from helpers.built_adapter import extract
from helpers.models import llama
from shardmerge.base.errors import UserError
from shardmerge.check.adapter_load import try_adapter

ASKED = {"model": "tuned", "base_model": "base", "rank": 4}


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "tuned")):
        llama(Path(name), seed, layers=2, files=2)
    # `norm` is the end of `input_layernorm` too
    return extract({"name": "a", "extract_lora": ASKED | {"modules_to_save": ["norm"]}})[0]


def test_on_the_weights_and_on_the_architecture_alone(adapter: Path) -> None:
    whole = try_adapter(adapter, Path("base"), weights=True)
    assert whole["finite"] and len(whole["generated"]) == 4
    for path in Path("base").glob("*.safetensors*"):
        path.unlink()
    bare = try_adapter(adapter, Path("base"), weights=False)
    assert (whole["loaded"], bare["loaded"]) == ("weights", "architecture")
    assert bare["parameters"] == whole["parameters"] > 0


def test_a_module_without_its_tensors(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "layers.1.mlp.up" not in k}, path)
    with pytest.raises(UserError, match=r"has nothing for the module .*layers\.1\.mlp\.up_proj"):
        try_adapter(adapter, Path("base"), weights=False)


def test_tensors_without_a_module(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].remove("q_proj")
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"that the base has no module for: .*q_proj"):
        try_adapter(adapter, Path("base"), weights=False)


def test_another_base(adapter: Path) -> None:
    path = Path("base/config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_size": 2 * config["hidden_size"]}))
    with pytest.raises(UserError, match="peft cannot load it"):
        try_adapter(adapter, Path("base"), weights=False)
