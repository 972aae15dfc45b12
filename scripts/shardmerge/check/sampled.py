"""Sampled elements as torch's tensors: those of all runs at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shardmerge.algebra.samples import Runs
from shardmerge.methods.kernels.execute import TorchElements
from shardmerge.methods.passes import Axis, KeyBand, Masks, NumbersOf


@dataclass(frozen=True)
class SampledElements(TorchElements):
    """Elements of a call's inputs that need not follow each other.

    What depends on an element's index is made run by run.

    Args:
        runs: Which elements they are.
    """

    runs: Runs

    def inside(self, value: torch.Tensor, band: KeyBand) -> torch.Tensor:
        parts = iter(value.split([count for _, count in self.runs]))
        return self._of_runs(lambda run: run.inside(next(parts), band))

    def chance(self, key: tuple[int, int], probability: float) -> torch.Tensor:
        return self._of_runs(lambda run: run.chance(key, probability))

    def below(self, numbers: NumbersOf, bound: int) -> torch.Tensor:
        return self._of_runs(lambda run: run.below(numbers, bound))

    def chosen(self, mask: Masks) -> torch.Tensor:
        return self._of_runs(lambda run: run.chosen(mask))

    def along(self, values: np.ndarray, axis: Axis, *, wide: bool = False) -> torch.Tensor:
        return self._of_runs(lambda run: run.along(values, axis, wide=wide))

    def _of_runs(self, function: Callable[[TorchElements], Any]) -> torch.Tensor:
        made, place = [], 0
        for first, count in self.runs:
            parts = [one[place : place + count] for one in self.tensors]
            made.append(function(TorchElements(parts, self.shape, first)))
            place += count
        return torch.cat(made)
