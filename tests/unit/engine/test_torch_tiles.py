"""Several sums in torch's order from one pass over a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shardmerge.engine import torch_tiles


def test_requests_of_one_pass_may_take_other_numbers_of_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shorter one ends first, and keeps its answer."""
    fed: list[Any] = []

    def steps(shape: list[int], codes: None, wanted: str, step: int) -> Iterator[tuple]:
        for first in range(0, shape[0], step):
            yield wanted, first, step
        return f"{wanted} of {shape[0]}"

    def tiles(wanted: str, count: int) -> Any:
        return SimpleNamespace(
            shape=[count],
            codes=None,
            wanted=wanted,
            begin=lambda: None,
            feed=lambda *told: fed.append(told),
            seen=lambda: wanted,
        )

    monkeypatch.setattr(torch_tiles, "fed", steps)
    step = torch_tiles.TOGETHER
    found = torch_tiles.in_one_pass([tiles("norm", step), tiles("sum", 3 * step)])
    assert found == [(f"norm of {step}", "norm"), (f"sum of {3 * step}", "sum")]
    assert [wanted for wanted, _, _ in fed] == ["norm", "sum", "sum", "sum"]
