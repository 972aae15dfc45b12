"""Consensus, PCB-Merging and Localize-and-Stitch: by hand, from their papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import kernel_cases as cases
from shardmerge.base.numerics import FLOAT32
from shardmerge.methods.passes import NO_BAND, Bands, Elements, Maxima, Wanted, end_of
from shardmerge.methods.program import Writer
from shardmerge.methods.registry import Group, kernel_of, passes_of
from shardmerge.methods.symbolic import Given, SymbolicElements


def merged(name: str, vectors: list[list[float]], **values: object) -> list[float]:
    """Return what a method makes of task vectors on a base of ones."""
    group = cases.ordinary(name, (len(vectors[0]),), models=len(vectors), **values)
    base = torch.ones(len(vectors[0]))
    group = replace(group, tensors=[base, *(base + torch.tensor(v) for v in vectors)])
    return (kernel_of(name, FLOAT32)[0](group) - base).tolist()


class TestConsensus:
    #: Sums 4, 3, 1, 0: the last two elements of the third model are its own.
    VECTORS = ([2.0, 4.0, 0.0, 1.0], [2.0, -1.0, 0.0, -1.0], [0.0, 0.0, 1.0, 0.0])

    @pytest.mark.parametrize(
        ("agreement", "expected"),
        [
            (0, [4.0, 3.0, 1.0, 0.0]),
            # |v_i| >= 0.5 |v - v_i|: 2 >= 1, 2 >= 1, 0 >= 2; 4 >= .5, 1 >= 2, 0; 0, 0, 1; 1, 1, 0
            (1, [4.0, 3.0, 1.0, 0.0]),
            (2, [4.0, 0.0, 0.0, 0.0]),
            (3, [0.0, 0.0, 0.0, 0.0]),
        ],
    )
    def test_task_arithmetic_by_hand(self, agreement: int, expected: list[float]) -> None:
        options = {"weight": 1.0, "threshold": 0.5, "agreement": agreement}
        assert merged("consensus_ta", self.VECTORS, **options) == expected

    def test_threshold_is_each_models(self) -> None:
        """1 is a quarter of what the other changes in the second element."""
        values = {"weight": 1.0, "threshold": (0.5, 0.25, 0.5)}
        assert merged("consensus_ta", self.VECTORS, **values)[:2] == [4.0, 3.0]

    def test_weights_and_lambda(self) -> None:
        values = {"weight": (0.5, 1.0), "threshold": 0.5, "lambda": 0.5}
        # weighted: 1 and 2, then 2 and -1
        assert merged("consensus_ta", self.VECTORS[:2], **values) == [1.5, 0.5, 0.0, -0.25]

    def test_ties_by_hand(self) -> None:
        """Signs are elected first: 4 stays of 4 and -1, which then do not agree."""
        options = {"weight": 1.0, "density": 1.0, "threshold": 0.5}
        assert merged("consensus_ties", self.VECTORS, **options) == [4.0, 0.0, 0.0, 1.0]
        options |= {"agreement": 1}
        assert merged("consensus_ties", self.VECTORS, **options) == [4.0, 4.0, 1.0, 1.0]
        options |= {"normalize": True}
        assert merged("consensus_ties", self.VECTORS, **options) == [2.0, 4.0, 1.0, 1.0]

    def test_ties_trims(self) -> None:
        """Of each vector one element of four is left; masks are of the whole vectors."""
        options = {"weight": 1.0, "density": 0.25, "threshold": 0.5, "agreement": 1}
        assert merged("consensus_ties", self.VECTORS, **options) == [2.0, 4.0, 1.0, 0.0]


class TestLocalizeAndStitch:
    def test_by_hand(self) -> None:
        """Each model's two largest of four; the second element is in both masks."""
        vectors = [[3.0, -2.0, 1.0, 0.5], [0.25, -4.0, 1.0, 2.0]]
        expected = [3.0, -3.0, 0.0, 2.0]
        assert merged("localize_and_stitch", vectors, density=0.5) == expected

    def test_density_is_each_models(self) -> None:
        vectors = [[3.0, -2.0], [1.0, 4.0]]
        assert merged("localize_and_stitch", vectors, density=(1.0, 0.0)) == [3.0, -2.0]


class TestCompetition:
    def scores(self, vectors: list[list[float]]) -> list[list[float]]:
        """Return the paper's scores, in plain numbers."""

        def norm(values: list[float]) -> list[float]:
            low, high = min(values), max(values)
            return [(value - low) / (high - low) if high > low else 0.0 for value in values]

        def softmax(values: list[float]) -> list[float]:
            powers = [math.exp(value) for value in values]
            return [power / sum(powers) for power in powers]

        def product(a: list[float], b: list[float]) -> list[float]:
            return [x * y for x, y in zip(a, b, strict=True)]

        result = []
        for own in vectors:
            within = softmax([len(vectors) * value for value in norm(product(own, own))])
            between = [softmax(norm(product(own, other))) for other in vectors]
            result.append(
                [w * sum(b) for w, b in zip(within, zip(*between, strict=True), strict=True)]
            )
        return result

    def test_two_elements_by_hand(self) -> None:
        """Of one model nothing competes; of two, each is the stronger one at its own element."""
        assert merged("pcb", [[2.0, 1.0]], density=1.0) == [2.0, 1.0]
        # v = (1, 0) and (0, 1): squares' norms (1, 0) and (0, 1), products equal, so of norm 0
        e = math.e
        own, cross, half = e**2 / (e**2 + 1), e / (e + 1), 0.5
        high, low = own * (cross + half), (1 - own) * (1 - cross + half)
        found = merged("pcb", [[1.0, 0.0], [0.0, 1.0]], density=1.0)
        assert found == pytest.approx([high / (high + low)] * 2, rel=1e-6)

    @pytest.mark.parametrize(("models", "pairs"), [(2, 3), (3, 6)])
    def test_each_pass_makes_an_exponential_for_each_pair(self, models: int, pairs: int) -> None:
        group, made = cases.ordinary("pcb", (64,), models=models), []

        def note(function: Callable[[Elements], object]) -> None:
            writer = Writer(["F32"] * (models + 1))
            function(SymbolicElements(writer, range(models + 1), (64,), Given(writer.constants)))
            made.append([step for step, _ in writer.steps].count("power"))

        def answer(wanted: Wanted) -> object:
            note(wanted.function)
            if isinstance(wanted, Bands):
                return [NO_BAND] * models
            return np.ones((2 * pairs if isinstance(wanted, Maxima) else models + pairs, 1))

        note(end_of(passes_of("pcb", FLOAT32)(group), answer))
        assert made == [0, pairs, pairs, pairs]

    @pytest.mark.parametrize("density", [1.0, 0.5])
    def test_by_the_papers_formula(self, density: float) -> None:
        vectors = [[3.0, -2.0, 1.0, 0.5], [0.25, -4.0, 1.0, 2.0], [1.0, 1.0, -3.0, 0.0]]
        scores, weights = self.scores(vectors), (1.0, 0.5, 2.0)
        for row in scores:
            for index in sorted(range(4), key=row.__getitem__)[: round(4 * (1 - density))]:
                row[index] = 0.0
        expected = [
            0.5
            * sum(w * s[e] * v[e] for w, s, v in zip(weights, scores, vectors, strict=True))
            / (sum(s[e] for s in scores) or 1.0)
            for e in range(4)
        ]
        values = {"weight": weights, "density": density, "lambda": 0.5}
        assert merged("pcb", vectors, **values) == pytest.approx(expected, rel=1e-5)

    def test_equal_models_give_themselves(self) -> None:
        vectors = [[3.0, -2.0, 1.0, 0.5]] * 2
        assert merged("pcb", vectors, density=1.0) == pytest.approx(vectors[0], rel=1e-6)


def test_groups_of_a_base_alone() -> None:
    """A tensor that only the base has stays as it is."""
    for name in ("consensus_ta", "consensus_ties", "pcb", "localize_and_stitch"):
        group = cases.ordinary(name, (3, 2), models=1)
        shared = {key: values[:1] for key, values in group.per_input.items()}
        alone: Group = replace(group, tensors=group.tensors[:1], per_input=shared)
        if name == "consensus_ta" or name == "consensus_ties":
            alone = replace(alone, parameters={**alone.parameters, "agreement": 0})
        assert torch.equal(kernel_of(name, FLOAT32)[0](alone), group.tensors[0])
