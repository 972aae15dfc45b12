"""Shards of compressed-tensors: the library's bytes, decoded by our decoders as it decodes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shardmerge import formats
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import read_header
from shardmerge.export import compressed_compare
from shardmerge.export.compressed_compare import ShardComparison, compare_shard
from shardmerge.export.compressed_making import compress_shard
from shardmerge.export.schemes import SCHEMES, ExportScheme, scheme_of
from shardmerge.export.selection import IGNORED, Selection, select

pytest.importorskip("compressed_tensors")
from shardmerge.export.compressed_library import (
    library_scheme,
    quantization_config,
)

MADE = [scheme for scheme in SCHEMES if not scheme.calibrated]
LAYER = "model.layers.0."
#: Rows and columns; blocks of 128 rows are not full.
SHAPES = {
    "model.embed_tokens.weight": (40, 256),
    f"{LAYER}self_attn.q_proj.weight": (256, 256),
    f"{LAYER}self_attn.k_proj.weight": (192, 256),
    f"{LAYER}self_attn.v_proj.weight": (192, 256),
    f"{LAYER}self_attn.o_proj.weight": (256, 256),
    f"{LAYER}mlp.gate_proj.weight": (320, 256),
    f"{LAYER}mlp.up_proj.weight": (320, 256),
    f"{LAYER}input_layernorm.weight": (256,),
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Case:
    """A model in one shard or two, and its exports."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(1)
        self.tensors = {
            name: (torch.randn(shape, generator=generator) * 0.02 * (i + 1)).to(dtype)
            for i, (name, shape) in enumerate(SHAPES.items())
        }
        code = "BF16" if dtype == torch.bfloat16 else "F16"
        self.table = {name: (code, shape) for name, shape in SHAPES.items()}
        self.model = folder / "model.safetensors"
        save_file(self.tensors, self.model)

    def selection(self, scheme: ExportScheme) -> Selection:
        return select(self.table, scheme, IGNORED)

    def export(self, scheme: ExportScheme) -> Path:
        made = self.folder / scheme.name / "model.safetensors"
        compress_shard(self.model, [], self.selection(scheme), scheme, made)
        told = {"quantization_config": quantization_config(scheme, self.selection(scheme))}
        (made.parent / "config.json").write_text(json.dumps(told))
        return made

    def compare(self, scheme: ExportScheme, made: Path) -> ShardComparison:
        config = made.parent / "config.json"
        return compare_shard(made, self.model, config, self.selection(scheme))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def decoded(path: Path) -> dict[str, np.ndarray]:
    """Return all quantised weights of an export by our decoders."""
    config = json.loads((path.parent / "config.json").read_text())
    tensors = read_header(path).tensors
    reading = formats.detect(config, {}, tensors)
    assert isinstance(reading, formats.Reading)
    file = compressed_compare._File(path)
    found = {}
    for name, one in reading.logical(tensors).items():
        boxes = formats.rows(one, 0, one.rows)
        blocks = {
            role: file.array(one.parts[role].tensor)[tuple(slice(*e) for e in box)]
            for role, box in boxes.items()
        }
        found[name] = formats.decode(one, blocks, 0, one.rows)
    return found


def unpacked(path: Path, scheme: ExportScheme, weight: str) -> torch.Tensor:
    """Return a weight as compressed-tensors decompresses it."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format

    own, module = library_scheme(scheme), weight.removesuffix("weight")
    kind = BaseCompressor.get_value_from_registry(infer_module_format(torch.nn.Linear, own).value)
    stored = {n.removeprefix(module): t for n, t in load_file(path).items()}
    table = {n: t for n, t in stored.items() if n.startswith("weight")}
    return kind.decompress(table, own)["weight"]


@pytest.mark.parametrize("scheme", MADE, ids=lambda s: s.name)
class TestEveryScheme:
    def test_our_decoders_agree_with_the_library(self, case: Case, scheme: ExportScheme) -> None:
        made = case.export(scheme)
        ours = decoded(made)
        assert sorted(ours) == list(case.selection(scheme).weights) and len(ours) == 6
        for name, values in ours.items():
            theirs = unpacked(made, scheme, name)
            # the library rounds the product of code and scale to the type of the scale
            assert torch.allclose(
                torch.from_numpy(values), theirs.float(), rtol=2**-7, atol=1e-6
            ), name

    def test_errors_are_those_of_rounding(self, case: Case, scheme: ExportScheme) -> None:
        found = case.compare(scheme, case.export(scheme))
        assert sorted(found.errors) == list(case.selection(scheme).weights)
        assert found.same == 2 and 0 < max(found.errors.values()) < scheme.most
        for name, error in found.errors.items():
            values = case.tensors[name].float()
            assert found.farthest[name] < values.abs().max()
            apart = torch.from_numpy(decoded(case.folder / scheme.name / "model.safetensors")[name])
            exact = float((apart - values).norm() / values.norm())
            assert error == pytest.approx(exact, rel=1e-3)

    def test_what_stays_is_copied_bit_by_bit(self, case: Case, scheme: ExportScheme) -> None:
        made = load_file(case.export(scheme))
        for name in ("model.embed_tokens.weight", f"{LAYER}input_layernorm.weight"):
            assert torch.equal(made[name], case.tensors[name])

    def test_same_bytes_each_time_and_every_tensor_aligned(
        self, case: Case, scheme: ExportScheme
    ) -> None:
        made = case.export(scheme)
        first = made.read_bytes()
        torch.set_num_threads(2)
        assert case.export(scheme).read_bytes() == first
        tensors = read_header(made).tensors.values()
        assert all(place.begin % DTYPES[place.dtype].size == 0 for place in tensors)
        assert max(place.end for place in tensors) == len(first)

    def test_same_bytes_as_llm_compressor(self, case: Case, scheme: ExportScheme) -> None:
        """Its file-by-file way, ``model_free_ptq``, where it is installed."""
        pytest.importorskip("llmcompressor")
        from compressed_tensors.quantization import QuantizationConfig
        from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter

        config = QuantizationConfig(
            config_groups={"group_0": library_scheme(scheme)}, ignore=list(IGNORED)
        )
        theirs = ModelFreePtqConverter(config).process(dict(case.tensors))
        ours = load_file(case.export(scheme))
        assert theirs.keys() == ours.keys()
        for name, tensor in ours.items():
            one, other = (t.detach().reshape(-1).view(torch.uint8) for t in (tensor, theirs[name]))
            assert torch.equal(one, other), name


def test_float16(tmp_path: Path) -> None:
    case = Case(tmp_path, torch.float16)
    for scheme in MADE:
        assert max(case.compare(scheme, case.export(scheme)).errors.values()) < scheme.most


def test_a_scale_that_several_shards_share(case: Case, tmp_path: Path) -> None:
    """A model in two shards has the tensors of the same model in one."""
    scheme = scheme_of("nvfp4a16")
    whole = load_file(case.export(scheme))
    names = sorted(SHAPES)
    parts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    halves = [names[::2], names[1::2]]
    for path, half in zip(parts, halves, strict=True):
        save_file({n: case.tensors[n] for n in half}, path)
    found: dict[str, torch.Tensor] = {}
    for path, other in (parts, parts[::-1]):
        made = tmp_path / f"made-{path.name}"
        compress_shard(path, [other], case.selection(scheme), scheme, made)
        found |= load_file(made)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name].view(torch.uint8), whole[name].view(torch.uint8))
               for name in whole)  # fmt: skip
    shared = {float(found[f"{LAYER}self_attn.{p}_proj.weight_global_scale"]) for p in "qkv"}
    alone = float(found[f"{LAYER}self_attn.o_proj.weight_global_scale"])
    assert len(shared) == 1 and alone not in shared
    with pytest.raises(UserError, match="in none of the shards"):
        compress_shard(parts[0], [], case.selection(scheme), scheme, tmp_path / "x.safetensors")


class TestDamage:
    SCHEME = scheme_of("fp8-dynamic")

    def change(self, made: Path, **tensors: Any) -> None:
        with safe_open(str(made), "pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            held[name] = tensor
        save_file({n: t for n, t in held.items() if t is not None}, made)

    @pytest.mark.parametrize(
        ("name", "tensor", "told"),
        [
            ("model.embed_tokens.weight", torch.zeros(40, 256).bfloat16(), "is not the model's"),
            ("model.embed_tokens.weight", None, "lacks tensor 'model.embed_tokens.weight' as"),
            (f"{LAYER}extra.weight", torch.zeros(2, 2), "should not have tensor"),
            (f"{LAYER}self_attn.o_proj.weight_scale", None, "lacks tensor .* quantised"),
            (
                f"{LAYER}self_attn.o_proj.weight_scale",
                torch.full((256, 1), torch.nan).bfloat16(),
                "infinite or NaN",
            ),
        ],
    )
    def test_is_told(self, case: Case, name: str, tensor: Any, told: str) -> None:
        made = case.export(self.SCHEME)
        self.change(made, **{name: tensor})
        with pytest.raises(UserError, match=told):
            case.compare(self.SCHEME, made)

    def test_changed_codes_are_far_away(self, case: Case) -> None:
        made, name = case.export(self.SCHEME), f"{LAYER}self_attn.o_proj.weight"
        self.change(made, **{name: torch.zeros(256, 256).to(torch.float8_e4m3fn)})
        assert case.compare(self.SCHEME, made).errors[name] == 1

    def test_nan_of_the_model(self, case: Case) -> None:
        case.tensors[f"{LAYER}self_attn.o_proj.weight"][3, 4] = torch.nan
        save_file(case.tensors, case.model)
        with pytest.raises(UserError, match="infinite or NaN"):
            case.compare(self.SCHEME, case.export(self.SCHEME))
