"""What kernels allocate, as torch's profiler sees it, is within what they declare."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from helpers import kernel_cases as cases
from shardmerge.base.numerics import FLOAT32, MERGEKIT
from shardmerge.methods.registry import in_mergekit, kernel_of, methods, workspace_elements

CASES = [(m.name, FLOAT32) for m in methods() if m.kernel]
CASES += [(m.name, MERGEKIT) for m in methods() if in_mergekit(m.name)]
ROWS = {"nuslerp_flatten": False, "filter_wise": True, "rescale": True, "epsilon": 0.1}


def peak_elements(function: Callable[[], torch.Tensor]) -> float:
    """Return the most float32 elements that a call had allocated beside its result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return (peak - result.numel() * result.element_size()) / 4


class TestWorkspace:
    def test_the_measure(self) -> None:
        x = torch.zeros(1 << 20)
        assert peak_elements(lambda: (x + 1) + (x + 2)) == pytest.approx(2 << 20, rel=0.01)

    @pytest.mark.parametrize("shape", [(512, 2048), (1 << 19,)])
    @pytest.mark.parametrize(("name", "numerics"), CASES)
    def test_is_within_what_is_declared(
        self, name: str, numerics: str, shape: tuple[int, ...]
    ) -> None:
        group = cases.ordinary(name, shape, models=3, **ROWS)
        kernel, _ = kernel_of(name, numerics)
        measured = peak_elements(lambda: kernel(group))
        assert measured <= workspace_elements(name, numerics, shape, len(group.tensors))
