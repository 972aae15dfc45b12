"""A whole quantised export: small files, architecture, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.models import llama
from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import read_header
from shardmerge.export.compressed_check import check_compressed, export_index
from shardmerge.export.compressed_compare import ShardComparison, compare_shard
from shardmerge.export.compressed_making import compress_shard
from shardmerge.export.record import ExportRecord
from shardmerge.export.schemes import scheme_of
from shardmerge.export.selection import IGNORED, select

pytest.importorskip("compressed_tensors")
from shardmerge.export.compressed_library import quantization_config

SCHEME, BUILD = replace(scheme_of("w4a16"), columns=32), "b" * 64
Q = "model.layers.0.self_attn.q_proj.weight"
SIZES = {"hidden_size": 64, "intermediate_size": 96}
INDEX = "model.safetensors.index.json"


class Case:
    """A model of two files, and its export."""

    def __init__(self, folder: Path) -> None:
        self.model = llama(folder / "model", 0, layers=2, files=2, hidden=64, inter=96, kv=32)
        self.folder = folder / "w4a16"
        (self.model / "tokenizer.json").write_text("{}")
        files = {p.name: read_header(p).tensors for p in sorted(self.model.glob("*.safetensors"))}
        table = {n: (t.dtype, t.shape) for rows in files.values() for n, t in rows.items()}
        self.selection = select(table, SCHEME, IGNORED)
        self.folder.mkdir()
        told = json.loads((self.model / "config.json").read_text()) | SIZES
        (self.model / "config.json").write_text(json.dumps(told))
        self.config = told | {"quantization_config": quantization_config(SCHEME, self.selection)}
        self.write("config.json", self.config)
        shutil.copy(self.model / "tokenizer.json", self.folder)
        self.shards: dict[str, ShardComparison] = {}
        for name in files:
            made, own = self.folder / name, self.model / name
            compress_shard(own, [], self.selection, SCHEME, made)
            config = self.folder / "config.json"
            self.shards[name] = compare_shard(made, own, config, self.selection)
        (self.folder / INDEX).write_text(export_index(self.folder, self.shards))

    def write(self, name: str, value: Any) -> None:
        (self.folder / name).write_text(json.dumps(value))

    def check(self, **changes: Any) -> ExportRecord:
        files = [path.name for path in self.folder.iterdir()]
        given = {"scheme": SCHEME, "selection": self.selection, "shards": self.shards} | changes
        return check_compressed(self.folder, files, self.model, BUILD, **given)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_record(case: Case) -> None:
    found = case.check()
    assert len(found.errors.tensors) == 14 and 0.05 < found.errors.median < 0.2
    assert found.errors.rows is None and set(found.errors.farthest) == set(found.errors.tensors)
    assert set(found.files) == {*case.shards, "config.json", "tokenizer.json", INDEX}
    assert set(found.kept) == {"lm_head.weight", "model.embed_tokens.weight"}
    assert 4 < found.bits_per_weight < 8
    assert found.tensors == {"export": 14 * 3 + 7, "model": 21}
    assert "LlamaForCausalLM" in found.metadata["architecture"] and found.not_checked == {}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("tokenizer.json", {"other": 1}, "tokenizer.json.* is not the model's"),
        ("config.json", {"vocab_size": 3}, "is not the model's, and quantization_config"),
        (INDEX, {"weight_map": {}}, "does not tell which tensors"),
    ],
)
def test_small_files_that_are_others(case: Case, name: str, value: Any, told: str) -> None:
    case.write(name, case.config | value if name == "config.json" else value)
    with pytest.raises(UserError, match=told):
        case.check()


def test_more_error_than_rounding_explains(case: Case) -> None:
    with pytest.raises(UserError, match="explains at most"):
        case.check(scheme=replace(SCHEME, most=0.01))


def test_a_module_that_is_no_linear_layer(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    unused = {"architecture": "OddForCausalLM", "unused": [f"{Q}_scale"]}
    module = "shardmerge.export.compressed_check.load_model"
    monkeypatch.setattr(module, lambda folder, weights: unused)
    with pytest.raises(UserError, match=r"self_attn.q_proj' is quantised, and is no linear layer"):
        case.check()


def test_an_architecture_that_transformers_does_not_know(case: Case) -> None:
    for folder in (case.model, case.folder):
        path = folder / "config.json"
        told = json.loads(path.read_text()) | {"model_type": "odd", "architectures": ["Odd"]}
        path.write_text(json.dumps(told))
    found = case.check()
    assert "cannot load it" in found.not_checked["architecture"]
