"""A small model of every format of quantised weights."""

from __future__ import annotations

import json

import torch

from helpers.format_cases import fp8, integers, quantised, random, scheme


def state(**changes: object) -> torch.Tensor:
    """Return a quant_state of bitsandbytes with changes (None drops a key)."""
    data = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 32]} | changes
    text = json.dumps({key: value for key, value in data.items() if value is not None})
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


STATE = "m.weight.quant_state.bitsandbytes__nf4"
BLOCKS = quantised("fp8", weight_block_size=[128, 128])
#: A small model of every format: config.json and tensors.
MODELS: dict[str, tuple[dict, dict[str, torch.Tensor]]] = {
    "fp8-block": (BLOCKS, {"m.weight": fp8(200, 130), "m.weight_scale_inv": random(2, 2)}),
    "fp8-block-3d": (BLOCKS, {"e.up": fp8(2, 130, 64), "e.up_scale_inv": random(2, 2, 1)}),
    "fp8-tensor": (
        quantised("modelopt", quant_algo="FP8"),
        {
            "m.weight": fp8(6, 4),
            "m.weight_scale": torch.tensor(0.5),
            "m.input_scale": torch.tensor(2.0),
        },
    ),
    "fp8-row": (
        quantised("fbgemm_fp8"),
        {"m.weight": fp8(6, 4), "m.weight_scale": random(6, 1), "m.bias": random(6)},
    ),
    "fp8-experts": (
        quantised("fbgemm_fp8"),
        {"e.gate_up_proj": fp8(3, 4, 6), "e.gate_up_proj_scale": random(3, 1, 6)},
    ),
    "pack": (
        scheme(4, group_size=32, symmetric=False),
        {
            "m.weight_packed": integers(40, 8),
            "m.weight_scale": random(40, 2).bfloat16(),
            "m.weight_zero_point": integers(5, 2),
            "m.weight_g_idx": torch.arange(64, dtype=torch.int32) % 2,
            "m.weight_shape": torch.tensor([40, 64]),
        },
    ),
    "int8": (
        scheme(8, strategy="channel"),
        {"m.weight": integers(6, 4, dtype=torch.int8), "m.weight_scale": random(6, 1).half()},
    ),
    "gptq": (
        quantised("gptq", bits=4, group_size=16),
        {
            "m.qweight": integers(8, 40),
            "m.qzeros": integers(4, 5),
            "m.scales": random(4, 40).half(),
            "m.g_idx": torch.arange(64, dtype=torch.int32) % 4,
        },
    ),
    "gptq-3bit": (
        quantised("gptq", bits=3, group_size=32, checkpoint_format="gptq_v2"),
        {
            "m.qweight": integers(6, 64),
            "m.qzeros": integers(2, 6),
            "m.scales": random(2, 64).half(),
        },
    ),
    "awq": (
        quantised("awq", bits=4, group_size=32, version="gemm", zero_point=True),
        {"m.qweight": integers(64, 3), "m.qzeros": integers(2, 3), "m.scales": random(2, 24)},
    ),
    "bnb-int8": (
        quantised("bitsandbytes", load_in_8bit=True),
        {
            "m.weight": integers(6, 4, dtype=torch.int8),
            "m.SCB": random(6),
            "m.weight_format": torch.tensor(0, dtype=torch.uint8),
        },
    ),
    "nf4": (
        {"quantization_config": {"load_in_4bit": True}},
        {
            "m.weight": integers(64, 1, dtype=torch.uint8),
            "m.weight.absmax": integers(2, dtype=torch.uint8),
            "m.weight.nested_absmax": random(1),
            "m.weight.nested_quant_map": random(256),
            "m.weight.quant_map": random(16),
            STATE: state(nested_blocksize=256, nested_offset=0.25, nested_dtype="float32"),
        },
    ),
    "mxfp4": (
        quantised("mxfp4"),
        {
            "e.down_proj_blocks": integers(2, 5, 3, 16, dtype=torch.uint8),
            "e.down_proj_scales": integers(2, 5, 3, dtype=torch.uint8) % 255,
        },
    ),
    "nvfp4": (
        scheme(4, "float", "tensor_group", group_size=16),
        {
            "m.weight_packed": integers(6, 16, dtype=torch.uint8),
            "m.weight_scale": fp8(6, 2),
            "m.weight_global_scale": torch.tensor([3.0]),
            "m.input_global_scale": torch.tensor([3.0]),
        },
    ),
    "nvfp4-modelopt": (
        quantised("modelopt", quant_algo="NVFP4"),
        {
            "m.weight": integers(6, 16, dtype=torch.uint8),
            "m.weight_scale": fp8(6, 2),
            "m.weight_scale_2": torch.tensor(3.0),
        },
    ),
}
