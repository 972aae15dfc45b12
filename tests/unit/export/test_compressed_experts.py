"""Experts that files have one by one are quantised, and transformers gives them their scales."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shardmerge.base.safetensors import read_header
from shardmerge.export.compressed_check import check_compressed
from shardmerge.export.compressed_compare import compare_shard
from shardmerge.export.compressed_making import compress_shard
from shardmerge.export.schemes import scheme_of
from shardmerge.export.selection import IGNORED, select

pytestmark = pytest.mark.slow
pytest.importorskip("compressed_tensors")

WEIGHTS = "model.safetensors"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}


def test_of_mixtral(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

    from shardmerge.export.compressed_library import quantization_config

    model, folder = tmp_path / "model", tmp_path / "w4a16"
    torch.manual_seed(0)
    own = MixtralForCausalLM(MixtralConfig(**SIZES, **HEADS)).to(torch.bfloat16)
    own.save_pretrained(model)
    scheme = replace(scheme_of("w4a16"), columns=32)
    table = {n: (e.dtype, e.shape) for n, e in read_header(model / WEIGHTS).tensors.items()}
    chosen = select(table, scheme, IGNORED)
    assert len([name for name in chosen.weights if ".experts." in name]) == 12
    folder.mkdir()
    config = json.loads((model / "config.json").read_text())
    told = config | {"quantization_config": quantization_config(scheme, chosen)}
    (folder / "config.json").write_text(json.dumps(told))
    compress_shard(model / WEIGHTS, [], chosen, scheme, folder / WEIGHTS)
    found = compare_shard(folder / WEIGHTS, model / WEIGHTS, folder / "config.json", chosen)
    files = ["config.json", WEIGHTS]
    check_compressed(folder, files, model, "b" * 64, scheme, chosen, {WEIGHTS: found})
    loaded = dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").named_parameters())
    wanted = {name: p.detach() for name, p in own.named_parameters() if ".experts." in name}
    assert len(wanted) == 2
    for name, values in wanted.items():
        apart = (loaded[name].detach().float() - values.float()).norm() / values.float().norm()
        assert 0.02 < float(apart) < 0.2, name
