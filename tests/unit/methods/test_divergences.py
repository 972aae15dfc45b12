"""Divergences of rows' softmaxes, by which Arcee Fusion chooses, in float32 arithmetic."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from shardmerge.methods.blending import passes
from shardmerge.methods.kernels.execute import answered

#: By how much the logits of a row differ, and by how much more all do.
ROWS = ((0.003, 0.0), (1e-7, 0.0), (0.0, 0.0), (0.003, 0.01), (0.003, 3.0), (1.0, 0.0), (9.0, 0.0))


def divergences(model: torch.Tensor, base: torch.Tensor) -> np.ndarray:
    pair = [model.reshape(-1), base.reshape(-1)]

    def read(first: int, count: int) -> list[torch.Tensor]:
        return [one[first : first + count] for one in pair]

    (found,) = answered(passes._divergence(0, 1), model.shape, read)
    return found


def exact_divergence(a: list[float], b: list[float]) -> mpmath.mpf:
    with mpmath.workprec(200):
        p, q = ([mpmath.exp(one) for one in row] for row in (a, b))
        terms = [x * (mpmath.mpf(i) - mpmath.mpf(j)) for x, i, j in zip(p, a, b, strict=True)]
        total, other = mpmath.fsum(p), mpmath.fsum(q)
        return mpmath.fsum(terms) / total - mpmath.log(total / other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_are_right_however_small_they_are(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(5)
    scales, more = (torch.tensor(one, dtype=dtype)[:, None] for one in zip(*ROWS, strict=True))
    base, change = torch.randn(2, len(ROWS), 300, dtype=dtype, generator=random)
    base = base * torch.where(scales > 0.5, scales, 0.02)
    model = base + change * scales + more
    for a, b, found in zip(model.tolist(), base.tolist(), divergences(model, base), strict=True):
        assert found == pytest.approx(float(exact_divergence(a, b)), rel=2e-5, abs=0)


def test_of_logits_that_are_far_apart() -> None:
    rows = (
        ([0.0, -100.0, -1e5], [-90.0, 0.0, 1e5]),
        ([-60.0, 0.0, 60.0], [60.0, 0.0, -60.0]),
        ([65504.0, 65504.0, 0.0], [0.0, 65504.0, 65504.0]),
    )
    model, base = (torch.tensor(side) for side in zip(*rows, strict=True))
    # no logit counts as more than 80 below the greatest of its row
    expected = [pytest.approx(number, rel=1e-4) for number in (80, 80, 40)]
    assert divergences(model, base).tolist() == expected
