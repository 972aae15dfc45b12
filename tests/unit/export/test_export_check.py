"""GGUF files are read back: their values are the model's, as far as their type allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.stand_ins import StandIns
from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.export.gguf_check import check_gguf
from shardmerge.export.record import ExportRecord
from shardmerge.export.tools import LlamaCpp

gguf = pytest.importorskip("gguf")
Q8, F16, F32 = (gguf.GGMLQuantizationType[name] for name in ("Q8_0", "F16", "F32"))
HEADS, WIDTH, TOKENS, BUILD = 2, 64, 8, "b" * 64
CONFIG = {
    "max_position_embeddings": 128,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "vocab_size": TOKENS,
}
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    "output_norm.weight": "model.norm.weight",
}


def reordered(rows: np.ndarray) -> np.ndarray:
    """Return rows of queries as llama.cpp wants them: a head's two halves, row by row."""
    halves = rows.reshape(HEADS, 2, -1, WIDTH)
    return np.stack((halves[:, 0], halves[:, 1]), 2).reshape(rows.shape)


class Case:
    """A model of four tensors and its export."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder / "q8_0", folder / "model"
        self.tools = LlamaCpp(StandIns(folder / "llama").folder)
        for path in (self.folder, self.model):
            path.mkdir()
        generator = np.random.default_rng(0)
        shapes = {"token_embd.weight": (TOKENS, WIDTH), "output_norm.weight": (WIDTH,)}
        self.values = {
            name: generator.standard_normal(shapes.get(name, (WIDTH, WIDTH))).astype(np.float16)
            for name in NAMES
        }
        tensors = {NAMES[n]: torch.from_numpy(v.copy()) for n, v in self.values.items()}
        save_file(tensors, self.model / "model.safetensors")
        (self.model / "config.json").write_text(json.dumps(CONFIG))

    def write(self, changes: Any = None, kind: Any = Q8, context: int = 128) -> None:
        """Write the export, with other values of some tensors."""
        writer = gguf.GGUFWriter(self.folder / "m-Q8_0.gguf", "llama")
        writer.add_context_length(context)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(1)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(HEADS)
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"t{i}" for i in range(TOKENS)])
        stored = self.values | {
            "blk.0.attn_q.weight": reordered(self.values["blk.0.attn_q.weight"])
        }
        for name, value in (stored | (changes or {})).items():
            own = F32 if value.ndim == 1 else kind
            data = gguf.quantize(value.astype(np.float32), own)
            writer.add_tensor(name, data, raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def check(self) -> ExportRecord:
        return check_gguf(self.folder, "q8_0", self.model, BUILD, self.tools)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


class TestCheck:
    def test_record(self, case: Case) -> None:
        case.write()
        found = case.check()
        assert found.tensors == {"export": 4, "model": 4} and found.build == BUILD
        assert found.errors.not_compared == {} and found.errors.compared == 4
        assert 0.001 < found.errors.median <= found.errors.largest < 0.01
        assert found.errors.tensors["output_norm.weight"] == 0
        assert 8.5 <= found.bits_per_weight < 8.8
        assert list(found.files) == ["m-Q8_0.gguf"]
        assert found.metadata["llama.context_length"] == "128"
        assert forms.read(ExportRecord, json.loads(json.dumps(forms.written(found)))) == found

    def test_values_of_another_model(self, case: Case) -> None:
        case.write({n: v * np.float16(1.2) for n, v in case.values.items()})
        with pytest.raises(UserError, match="median error"):
            case.check()

    def test_what_the_converter_stores_otherwise_is_named(self, case: Case) -> None:
        case.write({"output_norm.weight": case.values["output_norm.weight"] + np.float16(5)})
        told = case.check().errors.not_compared
        assert told == {"output_norm.weight": "stored otherwise by the converter"}

    def test_values_that_are_no_numbers(self, case: Case) -> None:
        broken = case.values["blk.0.attn_v.weight"].copy()
        broken[0, 0] = np.nan
        case.write({"blk.0.attn_v.weight": broken}, kind=F16)
        with pytest.raises(UserError, match="infinite values or NaN"):
            case.check()

    def test_metadata_of_another_model(self, case: Case) -> None:
        case.write(context=64)
        with pytest.raises(UserError, match=r"(?s)llama.context_length is 64.*says 128"):
            case.check()

    @pytest.mark.parametrize("size", [3, 100, 900])
    def test_cut_off(self, case: Case, size: int) -> None:
        case.write()
        (file,) = case.folder.iterdir()
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(UserError, match="is no GGUF file that can be read"):
            case.check()

    def test_nothing_there(self, case: Case) -> None:
        with pytest.raises(UserError, match="has no GGUF files"):
            case.check()
