"""Decoded tensors equal what the formats' own libraries make, bit for bit in float32.

A test whose library is not installed is skipped; tests/unit/formats/test_formats.py has values by
hand, which always run. requirements-test.txt has compressed-tensors and bitsandbytes, and
requirements-formats.txt gptqmodel and nvidia-modelopt, which are installed without dependencies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.format_cases import (
    contents_of,
    decoded,
    fp8,
    integers,
    quantised,
    random,
    same,
    scheme,
    table_of,
    weight_of,
)
from shardmerge import formats

pytestmark = pytest.mark.formats


class TestTransformers:
    @pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
    @pytest.mark.parametrize("shape", [(256, 384), (128, 128), (3, 256, 128)])
    def test_block_fp8(self, shape: tuple[Any, ...], scale: Any) -> None:
        library = pytest.importorskip("transformers.integrations.finegrained_fp8")
        codes = fp8(*shape)
        grid = random(*shape[:-2], shape[-2] // 128, shape[-1] // 128).abs().to(scale)
        tensors = {"m.weight": codes, "m.weight_scale_inv": grid}
        expected = library.Fp8Dequantize(None)._dequantize_one(codes, grid, torch.float32)
        assert same(weight_of(tensors, quantised("fp8", weight_block_size=[128, 128])), expected)

    @pytest.mark.parametrize("outputs", [64, 40])
    def test_mxfp4(self, outputs: int) -> None:
        library = pytest.importorskip("transformers.integrations.mxfp4")
        blocks = integers(3, outputs, 4, 16, dtype=torch.uint8)
        scales = integers(3, outputs, 4, dtype=torch.uint8, seed=1).clamp(max=254)
        expected = library.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        tensors = {"e.down_proj_blocks": blocks, "e.down_proj_scales": scales}
        assert same(weight_of(tensors, quantised("mxfp4")), expected)


class TestCompressedTensors:
    def decompressed(self, form: Any, weights: Any, tensors: Any, **more: Any) -> Any:
        """Return what the library makes of a module's tensors in float32."""
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors.base import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        args = QuantizationArgs(**weights, **more)
        compressor = BaseCompressor.get_value_from_registry(form)
        made = QuantizationScheme(targets=["Linear"], weights=args)
        names = {n.removeprefix("m."): t for n, t in tensors.items()}
        return compressor.decompress(names, made)["weight"]

    @pytest.mark.parametrize("bits", [2, 4, 8])
    @pytest.mark.parametrize(
        ("strategy", "groups", "size"), [("group", 4, 32), ("group", 1, 128), ("channel", 1, None)]
    )
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_pack_quantized(
        self, bits: int, strategy: str, groups: int, size: int | None, symmetric: bool
    ) -> None:
        tensors = {
            "m.weight_packed": integers(48, 128 * bits // 32),
            "m.weight_scale": random(48, groups).abs(),
            "m.weight_shape": torch.tensor([48, 128]),
        }
        if not symmetric:
            tensors["m.weight_zero_point"] = integers(-(-48 * bits // 32), groups, seed=2)
        weights = {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": symmetric}
        weights |= {"group_size": size} if size else {}
        expected = self.decompressed("pack-quantized", weights, tensors)
        config = scheme(bits, strategy=strategy, symmetric=symmetric, group_size=size)
        assert same(weight_of(tensors, config), expected)

    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize(("strategy", "shape"), [("channel", (40, 1)), ("tensor", (1,))])
    def test_int_quantized(self, strategy: str, shape: tuple[Any, ...], symmetric: bool) -> None:
        tensors = {
            "m.weight": integers(40, 24, dtype=torch.int8),
            "m.weight_scale": random(*shape).abs(),
        }
        if not symmetric:
            tensors["m.weight_zero_point"] = integers(*shape, dtype=torch.int8, seed=3)
        weights = {"num_bits": 8, "type": "int", "strategy": strategy, "symmetric": symmetric}
        expected = self.decompressed("int-quantized", weights, tensors)
        assert same(weight_of(tensors, scheme(8, strategy=strategy, symmetric=symmetric)), expected)

    @pytest.mark.parametrize(
        ("strategy", "shape", "more"),
        [
            ("channel", (72, 1), {}),
            ("tensor", (1,), {}),
            ("group", (72, 3), {"group_size": 32}),
            ("block", (2, 2), {"block_structure": [48, 64]}),
        ],
    )
    def test_float_quantized(
        self, strategy: str, shape: tuple[Any, ...], more: dict[str, Any]
    ) -> None:
        tensors = {"m.weight": fp8(72, 96), "m.weight_scale": random(*shape).abs()}
        weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
        expected = self.decompressed("float-quantized", weights, tensors, **more)
        config = scheme(8, "float", strategy, symmetric=True, **more)
        assert same(weight_of(tensors, config), expected)

    def test_ragged_blocks(self) -> None:
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.entrypoints.convert.converters import fp8block_dequantizer as lib

        codes, grid = fp8(200, 300), random(2, 3).abs()
        converter = lib.FP8BlockDequantizer(
            targets=["m"], weight_block_size=(128, 128), dtype=torch.float32
        )
        expected = converter._create_dequantized_weight(codes, grid)
        tensors = {"m.weight": codes, "m.weight_scale_inv": grid}
        config = quantised("fp8", weight_block_size=[128, 128])
        assert same(weight_of(tensors, config), expected)

    def test_nvfp4(self) -> None:
        """The library rounds to bfloat16; the same steps of it are done in float32."""
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
        from compressed_tensors.quantization import QuantizationArgs
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        tensors = {
            "m.weight_packed": integers(24, 32, dtype=torch.uint8),
            "m.weight_scale": fp8(24, 4),
            "m.weight_global_scale": torch.tensor([431.7]),
        }
        weights = {
            "num_bits": 4,
            "type": "float",
            "strategy": "tensor_group",
            "group_size": 16,
            "symmetric": True,
        }
        codes = unpack_fp4_from_uint8(tensors["m.weight_packed"], 24, 64, torch.float32)
        expected = dequantize(
            codes,
            tensors["m.weight_scale"].float(),
            args=QuantizationArgs(**weights),
            global_scale=tensors["m.weight_global_scale"],
        )
        mine = weight_of(tensors, scheme(4, "float", "tensor_group", group_size=16))
        assert same(mine, expected)
        rounded = self.decompressed("nvfp4-pack-quantized", weights, tensors)
        assert torch.equal(mine.bfloat16(), rounded)

    @pytest.mark.parametrize("form", ["mxfp4-pack-quantized", "mxfp8-quantized"])
    def test_mx(self, form: str) -> None:
        """Products with powers of two are exact, so bfloat16 loses nothing."""
        bits = 4 if "4" in form else 8
        key = "m.weight_packed" if bits == 4 else "m.weight"
        tensors = {
            key: integers(24, 48, dtype=torch.uint8) if bits == 4 else fp8(24, 96),
            "m.weight_scale": integers(24, 3, dtype=torch.uint8, seed=4) % 100 + 70,
        }
        weights = {
            "num_bits": bits,
            "type": "float",
            "strategy": "group",
            "group_size": 32,
            "symmetric": True,
        }
        expected = self.decompressed(form, weights, tensors)
        config = scheme(bits, "float", "group", group_size=32)
        assert same(weight_of(tensors, config), expected.float())


class TestGptqmodel:
    @pytest.mark.parametrize("bits", [2, 3, 4, 8])
    @pytest.mark.parametrize("convention", ["gptq", "gptq_v2"])
    @pytest.mark.parametrize("order", [False, True])
    def test_gptq(self, tmp_path: Path, bits: int, convention: str, order: bool) -> None:
        library = pytest.importorskip("gptqmodel.utils.model_dequant")
        index = torch.arange(128, dtype=torch.int32) // 32
        if order:
            index = index[torch.randperm(128, generator=torch.Generator().manual_seed(5))]
        tensors = {
            "m.qweight": integers(128 * bits // 32, 64),
            "m.qzeros": integers(4, 64 * bits // 32, seed=1),
            "m.scales": random(4, 64).abs().half(),
            "m.g_idx": index,
        }
        config = {"bits": bits, "group_size": 32, "checkpoint_format": convention}
        save_file(tensors, tmp_path / "x.safetensors")
        made = library.convert_gptq_file(
            tmp_path / "x.safetensors", torch.float32, config, device="cpu"
        )
        assert same(weight_of(tensors, quantised("gptq", **config)), made["m.weight"])
        if not order:
            del tensors["m.g_idx"]
            assert same(weight_of(tensors, quantised("gptq", **config)), made["m.weight"])

    def test_awq(self) -> None:
        library = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils")
        tensors = {
            "m.qweight": integers(96, 9),
            "m.qzeros": integers(3, 9, seed=1),
            "m.scales": random(3, 72).abs().half(),
        }
        made = library.dequantize_gemm(
            tensors["m.qweight"], tensors["m.qzeros"], tensors["m.scales"].float(), 4, 32
        )
        config = quantised("awq", bits=4, group_size=32, version="gemm")
        assert same(weight_of(tensors, config), made.T.contiguous())


class TestBitsandbytes:
    @pytest.mark.parametrize("kind", ["nf4", "fp4"])
    @pytest.mark.parametrize("nested", [False, True])
    @pytest.mark.parametrize("block", [64, 128])
    @pytest.mark.parametrize(
        ("shape", "storage"),
        [((96, 200), torch.uint8), ((96, 200), torch.bfloat16), ((33, 21), torch.uint8)],
    )
    def test_4bit(
        self, kind: str, nested: bool, block: int, shape: tuple[Any, ...], storage: Any
    ) -> None:
        library = pytest.importorskip("bitsandbytes.functional")
        codes, state = library.quantize_4bit(
            random(*shape), None, None, block, nested, kind, storage
        )
        expected = library.dequantize_4bit(codes, state)
        parts = {f"m.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        mine = weight_of({"m.weight": codes, **parts}, quantised("bitsandbytes"))
        assert expected.dtype == torch.float32
        if kind == "fp4" and shape[1] % 2:
            # The library's kernel for odd rows makes +0 of the code for -0; its others do not.
            mine, expected = mine + 0.0, expected + 0.0
        assert same(mine, expected)

    def test_int8(self) -> None:
        library = pytest.importorskip("bitsandbytes.functional")
        codes, scales, _ = library.int8_vectorwise_quant(random(40, 64).half())
        tensors = {
            "m.weight": codes,
            "m.SCB": scales,
            "m.weight_format": torch.tensor(0, dtype=torch.uint8),
        }
        expected = library.int8_vectorwise_dequant(codes, scales)
        assert same(weight_of(tensors, quantised("bitsandbytes")), expected)


class TestModelopt:
    def test_nvfp4(self) -> None:
        library = pytest.importorskip("modelopt.torch.quantization.qtensor")
        weight = random(32, 64)
        stored, scale, overall = library.NVFP4QTensor.quantize(weight, 16)
        expected = stored.dequantize(
            torch.float32, scale=scale, double_scale=overall, block_sizes={-1: 16}
        )
        tensors = {
            "m.weight": stored._quantized_data,
            "m.weight_scale": scale,
            "m.weight_scale_2": overall.reshape(()),
        }
        mine = weight_of(tensors, quantised("modelopt", quant_algo="NVFP4"))
        # The library's table has +0 for the code of -0.
        assert same(mine + 0.0, expected + 0.0)


class TestSavedModels:
    """Models that transformers saved quantised have the tensors of the plain one."""

    def plain(self, folder: Any) -> Any:
        """Return a small Llama, saved."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=32,
        )
        model = LlamaForCausalLM(config).bfloat16()
        model.save_pretrained(folder)
        return model

    def read(self, folder: Any) -> Any:
        """Return all tensors of a saved model, as they are read, in bfloat16."""
        tensors = load_file(folder / "model.safetensors")
        table = table_of(tensors)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        reading = formats.detect(config, {}, table)
        found = reading.logical(table, contents_of(tensors, reading.needed(table)))
        claimed = reading.claimed(table, found)
        assert not any(table[n].dtype in formats.CODE_TYPES for n in set(table) - claimed)
        rest = {name: tensor for name, tensor in tensors.items() if name not in claimed}
        return rest | {name: decoded(tensors, one, 30).bfloat16() for name, one in found.items()}

    @pytest.mark.parametrize(
        "settings",
        [
            {"load_in_8bit": True},
            {"load_in_4bit": True},
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
            },
        ],
    )
    def test_bitsandbytes(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig, LlamaForCausalLM
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        names = set(self.plain(tmp_path / "plain").state_dict())
        model = LlamaForCausalLM.from_pretrained(
            tmp_path / "plain",
            quantization_config=BitsAndBytesConfig(**settings),
            device_map="cpu",
            dtype=torch.bfloat16,
        )
        model.save_pretrained(tmp_path / "small")
        mine = self.read(tmp_path / "small")
        assert set(mine) == names
        for name, module in model.named_modules():
            if getattr(module, "weight", None) is not None:
                expected = dequantize_bnb_weight(module.weight, getattr(module, "state", None))
                assert torch.equal(mine[f"{name}.weight"], expected.bfloat16()), name

    def test_compressed_tensors(self, tmp_path: Path) -> None:
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import (
            QuantizationConfig,
            apply_quantization_config,
            preset_name_to_scheme,
        )

        model = self.plain(tmp_path / "plain")
        names = set(model.state_dict())
        groups = {"group_0": preset_name_to_scheme("W8A16", ["Linear"])}
        apply_quantization_config(
            model, QuantizationConfig(config_groups=groups, ignore=["lm_head"])
        )
        for module in model.modules():
            if getattr(module, "quantization_scheme", None):
                scales = module.weight.data.abs().unflatten(1, (-1, 128)).amax(2) / 127
                module.weight_scale.data = scales.to(module.weight_scale.dtype)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        model.save_pretrained(tmp_path / "small")
        compressor.update_config(tmp_path / "small")
        mine = self.read(tmp_path / "small")
        compressor.decompress_model(model)
        expected = model.state_dict()
        assert set(mine) == names
        assert all(torch.equal(mine[n], expected[n].bfloat16()) for n in names)
