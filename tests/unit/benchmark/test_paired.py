"""Paired tests: against values computed by hand, and on simulated models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import pytest
from scipy import stats

from shardmerge.benchmark import paired
from shardmerge.benchmark.paired import bootstrap, holm, least_flips, mcnemar, share_interval


def answers(both: int, gained: int, lost: int, neither: int) -> tuple[numpy.ndarray, ...]:
    own = [1] * both + [1] * gained + [0] * lost + [0] * neither
    other = [1] * both + [0] * gained + [1] * lost + [0] * neither
    return numpy.array(own, float), numpy.array(other, float)


def mean(parts: Sequence[numpy.ndarray], axis: int = -1) -> numpy.ndarray:
    return parts[0].mean(axis)


class TestMcnemar:
    def test_of_five_flips_against_one(self) -> None:
        found = mcnemar(*answers(10, 5, 1, 4))
        # by hand: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64
        assert found.p == pytest.approx(14 / 64)
        assert (found.difference, found.up, found.down, found.questions) == (0.2, 5, 1, 20)

    def test_of_nine_flips_against_one(self) -> None:
        assert mcnemar(*answers(0, 9, 1, 90)).p == pytest.approx(2 * 11 / 1024)

    def test_the_interval_by_hand(self) -> None:
        found = mcnemar(*answers(10, 5, 1, 4))
        gained, lost = 6 / 22, 2 / 22
        half = 1.959964 * math.sqrt((gained + lost - (gained - lost) ** 2) / 22)
        assert (found.low, found.high) == pytest.approx(
            (gained - lost - half, gained - lost + half)
        )

    def test_models_that_never_differ(self) -> None:
        found = mcnemar(*answers(7, 0, 0, 3))
        assert (found.p, found.difference, found.up, found.down) == (1.0, 0.0, 0, 0)
        assert found.low < 0 < found.high  # ten questions are no proof that they are the same

    def test_swapped_models_give_the_negative(self) -> None:
        own, other = answers(3, 6, 2, 9)
        there, back = mcnemar(own, other), mcnemar(other, own)
        assert (there.p, there.difference) == (back.p, -back.difference)
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))

    def test_false_alarms_are_as_rare_as_promised(self) -> None:
        rng = numpy.random.default_rng(1)
        tries = [mcnemar(*(rng.random((2, 100)) < 0.6).astype(float)).p for _ in range(400)]
        assert sum(p <= 0.05 for p in tries) / 400 <= 0.06


class TestBootstrap:
    def run(self, own: numpy.ndarray, other: numpy.ndarray) -> paired.Paired:
        return bootstrap([own[None]], [other[None]], mean)

    def test_is_the_same_every_time(self) -> None:
        rng = numpy.random.default_rng(0)
        own, other = rng.random(50), rng.random(50)
        assert self.run(own, other) == self.run(own.copy(), other.copy())

    def test_is_the_same_however_many_are_drawn_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own, other = numpy.random.default_rng(0).random((2, 50))
        before = self.run(own, other)
        monkeypatch.setattr(paired, "_BATCH", 700)
        assert self.run(own, other) == before

    def test_pairs_tell_what_the_models_apart_do_not(self) -> None:
        rng = numpy.random.default_rng(0)
        hard = rng.normal(0, 5, 100)  # questions differ far more than models
        found = self.run(hard + 0.5 + rng.normal(0, 0.1, 100), hard)
        assert found.p < 0.001 and 0.4 < found.low < found.difference < found.high < 0.6

    def test_covers_the_truth_as_often_as_it_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paired, "RESAMPLES", 999)
        rng = numpy.random.default_rng(3)
        hits = 0
        for _ in range(200):
            hard = rng.normal(0, 2, 80)
            own, other = hard + rng.exponential(1.3, 80), hard + rng.exponential(1.0, 80)
            found = self.run(own, other)
            hits += found.low <= 0.3 <= found.high
        assert 0.90 <= hits / 200 <= 0.985

    def test_equal_models(self) -> None:
        found = self.run(numpy.arange(9.0), numpy.arange(9.0))
        assert (found.p, found.difference, found.low, found.high) == (1.0, 0, 0, 0)

    def test_tasks_of_a_group_count_alike(self) -> None:
        own = [numpy.ones((1, 10)), numpy.zeros((1, 1000))]
        other = [numpy.zeros((1, 10)), numpy.zeros((1, 1000))]
        found = bootstrap(own, other, mean)
        assert (found.difference, found.questions, found.up) == (0.5, 1010, 10)


class TestHolm:
    def test_by_hand(self) -> None:
        # sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, and none is below the one before
        assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])

    def test_none_does_not_count_and_one_is_the_most(self) -> None:
        assert holm([None, 0.6, 0.9, None]) == [None, 1.0, 1.0, None]
        assert holm([]) == []

    def test_one_comparison_stays_as_it_is(self) -> None:
        assert holm([0.04]) == [0.04]


class TestLeastFlips:
    @pytest.mark.parametrize(("comparisons", "flips"), [(1, 6), (2, 7), (24, 10)])
    def test_that_many_flips_and_no_fewer(self, comparisons: int, flips: int) -> None:
        assert least_flips(comparisons) == flips
        few, enough = (mcnemar(*answers(0, n, 0, 50)).p * comparisons for n in (flips - 1, flips))
        assert enough <= 0.05 < few


def test_interval_of_all_right_is_no_certainty() -> None:
    assert share_interval(1.0, 20) == pytest.approx((20 / (20 + 1.959964**2), 1.0))


@pytest.mark.parametrize(("right", "questions"), [(0, 7), (3, 7), (50, 200), (200, 200)])
def test_interval_of_a_share_is_scipys(right: int, questions: int) -> None:
    found = stats.binomtest(right, questions).proportion_ci(0.95, method="wilson")
    assert share_interval(right / questions, questions) == pytest.approx([*found], abs=1e-6)


def test_higher_and_lower_are_told_of_values() -> None:
    """A perplexity is lower where the likelihoods that it is made of are higher."""

    def nats(parts: Sequence[numpy.ndarray], axis: int = -1) -> numpy.ndarray:
        return -parts[0].sum(axis) / parts[1].sum(axis)

    own, other = numpy.array([[-1.0, -2, -9], [1, 1, 1]]), numpy.array([[-2.0, -3, -8], [1, 1, 1]])
    found = bootstrap([own], [other], nats)
    assert (found.up, found.down) == (1, 2)


def test_two_passages_are_no_proof() -> None:
    own, other = numpy.array([[1.0, 1.1]]), numpy.array([[0.0, 0.1]])
    assert bootstrap([own], [other], mean).p == 0.5
