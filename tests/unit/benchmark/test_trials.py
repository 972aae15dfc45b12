"""Trials of a sweep as points."""

from __future__ import annotations

import json
import math

import pytest

from shardmerge.base import forms
from shardmerge.base.forms import FormError
from shardmerge.benchmark.trials import Measurement, Trial, TrialSet, pareto_front


def trial(name: str, b: float, c: float = 0.0, status: str = "done", **variables: object) -> Trial:
    metrics = {"B": Measurement(value=b, stderr=0.01, questions=200), "C": Measurement(value=c)}
    return Trial(name=name, variables=variables, metrics=metrics, status=status)


def trials(*rows: Trial, **objectives: bool) -> TrialSet:
    return TrialSet(name="demo", objectives=objectives or {"B": True, "C": True}, trials=rows)


class TestTrialSet:
    def test_it_is_read_as_it_was_written(self) -> None:
        made = trials(trial("a", 0.5, w=0.1, method="ties", flag=True), trial("b", math.nan, w=1))
        assert str(forms.read(TrialSet, json.loads(json.dumps(forms.written(made))))) == str(made)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("status", "gone"), ("variables", {"w": [1]}), ("metrics", {"B": 0.5}), ("name", 1)],
    )
    def test_a_damaged_trial_is_refused(self, key: str, value: object) -> None:
        data = forms.written(trials(trial("a", 0.5)))
        data["trials"][0][key] = value
        with pytest.raises(FormError, match=key):
            forms.read(TrialSet, data)

    def test_values_of_variables_are_ordered_where_they_are_numbers(self) -> None:
        made = trials(trial("a", 0, w=0.5, m="ties"), trial("b", 0, w=0.1, m="dare"))
        assert made.variables() == {"w": [0.1, 0.5], "m": ["ties", "dare"]}

    def test_true_is_not_one(self) -> None:
        made = trials(trial("a", 0, w=True), trial("b", 0, w=1), trial("c", 0, w=1))
        assert [type(v) for v in made.variables()["w"]] == [bool, int]


class TestParetoFront:
    def test_those_that_no_other_beats(self) -> None:
        made = trials(
            trial("a", 1, 0), trial("b", 0.5, 0.5), trial("c", 0.4, 0.5), trial("d", 0, 1)
        )
        assert pareto_front(made) == ("a", "b", "d")

    def test_equals_stay_together(self) -> None:
        assert pareto_front(trials(trial("a", 1, 1), trial("b", 1, 1))) == ("a", "b")

    def test_lower_may_be_better(self) -> None:
        made = trials(trial("a", 9.0), trial("b", 3.0), B=False)
        assert pareto_front(made) == ("b",)

    def test_what_failed_or_has_no_number_does_not_count(self) -> None:
        made = trials(
            trial("a", 1, status="stopped"), trial("b", math.inf), trial("c", 0.1), B=True
        )
        assert pareto_front(made) == ("c",)
