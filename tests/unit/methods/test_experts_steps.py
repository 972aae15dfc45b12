"""Steps of mixtures: the distribution of noise, and routers from embeddings by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from shardmerge.base.dtypes import DTYPES, dtype_code
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.methods import registry
from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.normal import normal_numbers, quantile
from shardmerge.methods.registry import kernel_of, result_dtype

_COUNT = 200_000


def _noise(step: str, numerics: Numerics, first: int, count: int, **values: object) -> torch.Tensor:
    kernel, elementwise = kernel_of(step, numerics)
    assert elementwise
    parameters = {"scale": 1.0, "seed": 0, "stage": "s", "model": ""} | values
    return kernel(
        Group([torch.zeros(count)], None, parameters, {}, name="t", offset=first, total=_COUNT)
    )


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    p = torch.cat([torch.linspace(1e-9, 1 - 1e-9, 100_001, dtype=torch.float64)])
    assert (quantile(p) - torch.special.ndtri(p)).abs().max() < 1e-8
    middle = (p > 1e-3) & (p < 1 - 1e-3)
    assert (quantile(p) - torch.special.ndtri(p))[middle].abs().max() < 1e-13


def test_normal_noise_is_normal() -> None:
    noise = normal_numbers((1, 2), 0, _COUNT).sort().values
    steps = torch.arange(1, _COUNT + 1, dtype=torch.float64) / _COUNT
    # Kolmogorov and Smirnov's distance; 1.95 / sqrt(n) is passed once in a thousand times
    assert (torch.special.ndtr(noise) - steps).abs().max() < 1.95 / math.sqrt(_COUNT)


@pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
def test_noise_has_its_scale_and_no_memory_of_blocks(numerics: Numerics) -> None:
    for step, deviation in (("normal_noise", 1.0), ("uniform_noise", 1 / math.sqrt(3))):
        whole = _noise(step, numerics, 0, _COUNT, scale=0.25)
        assert whole.std() == pytest.approx(0.25 * deviation, rel=0.01)
        assert abs(whole.mean()) < 0.01 * deviation
        parts = [_noise(step, numerics, i, 50_000, scale=0.25) for i in range(0, _COUNT, 50_000)]
        assert torch.equal(torch.cat(parts), whole)
    assert whole.abs().max() <= 0.25


def test_seeds_stages_and_models_draw_other_numbers() -> None:
    streams = [
        _noise("normal_noise", FLOAT32, 0, 1000, **values)
        for values in ({}, {"seed": 1}, {"stage": "other"}, {"model": "m"})
    ]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.15


@pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
def test_a_router_of_embeddings_by_hand(numerics: Numerics) -> None:
    kernel, _ = kernel_of("embedding_gate", numerics)
    rows = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 2.0], [1.0, 0.0], [0.0, 5.0]])
    # an expert with prompts of two tokens and of one, against one token; another of one token
    prompts = json.dumps([[[2, 1], [1]], [[1], []]])
    found = kernel(Group([rows], None, {"prompts": prompts}, {}))
    # (3, 4) / 5 - (1, 0) = (-0.4, 0.8), of length 0.8944
    wanted = torch.tensor([[-0.4 / math.sqrt(0.8), 0.8 / math.sqrt(0.8)], [0.0, 1.0]])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_types_of_results_are_the_declared_ones(dtype: str) -> None:
    """Of all steps: what follows a step is computed in the type that it is said to have."""
    matrix = torch.ones(2, 2, dtype=getattr(torch, dtype))
    noise = {"scale": 1.0, "seed": 0, "stage": "s", "model": ""}
    groups = {
        "normal_noise": ([matrix], noise),
        "uniform_noise": ([matrix], noise),
        "embedding_gate": ([matrix], {"prompts": "[[[1],[]],[[1],[]]]"}),
        "dora": ([matrix, matrix[0]], {"transposed": False}),
    }
    code = dtype_code(dtype, "here")
    assert {name for name, steps in registry._STEPS.items() if MERGEKIT in steps} == set(groups)
    for name, (tensors, parameters) in groups.items():
        kernel, _ = kernel_of(name, MERGEKIT)
        made = kernel(Group(tensors, None, parameters, {}, name="t", offset=0, total=4))
        wanted = DTYPES[result_dtype(name, MERGEKIT, code)].name
        assert str(made.dtype) == f"torch.{wanted}", name
