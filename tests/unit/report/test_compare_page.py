"""The page that compares all models of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.large_models import large_plan, llama_70b
from shardmerge.base import forms
from shardmerge.benchmark.comparison_rows import Scores
from shardmerge.plan.plan import Plan
from shardmerge.report.compare_page import compare_page
from shardmerge.report.parents import references

NAME = "miquplus-midnight-70b"
BASE, RECIPIENT = "Llama-2-70b-hf", "miqu-1-70b-sf"
HOSTILE = "<script>alert(1)</script>&\"'"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return large_plan(tmp_path, llama_70b(12), files=3)


def cell(model: str, label: str = "t/acc", **other: Any) -> dict[str, Any]:
    row = {"model": model, "label": label, "headline": True, "higher_is_better": True}
    row |= {"value": 0.5, "stderr": 0.1, "low": 0.4, "high": 0.6, "settings": {}, "notes": []}
    return row | other


def compared(model: str, label: str = "t/acc", **other: Any) -> dict[str, Any]:
    row = {"model": model, "reference": RECIPIENT, "label": label, "headline": True}
    row |= {"higher_is_better": True, "test": "mcnemar", "difference": 0.1, "questions": 200}
    row |= {"low": 0.05, "high": 0.15, "p": 0.001, "adjusted": 0.003, "up": 30, "down": 10}
    return row | {"verdict": "better", "notes": []} | other


def table(cells: list[Any], comparisons: list[Any], **other: Any) -> Scores:
    models = list(dict.fromkeys(row["model"] for row in cells))
    data = {"models": models, "cells": cells, "comparisons": comparisons, "footnotes": []}
    return forms.read(Scores, data | other)


class TestComparePage:
    def test_says_in_words_what_each_model_is_better_at(self, plan: Plan) -> None:
        cells = [cell(NAME), cell(NAME, "u/acc"), cell(RECIPIENT), cell(RECIPIENT, "u/acc")]
        found = [compared(NAME), compared(NAME, "u/acc", verdict="unclear")]
        text = compare_page(plan, table(cells, found, small=["It is small."]))
        told = f"{NAME}: better than {RECIPIENT} on t/acc; no clear difference on u/acc."
        assert f"<p class='good'>{told}</p>" in text
        assert "0.500 [0.400, 0.600] ▲" in text and "<p class='bad'>It is small.</p>" in text
        assert "+0.100 [+0.050, +0.150]" in text and "30 won, 10 lost of 200" in text

    def test_worse_is_never_hidden_by_better(self, plan: Plan) -> None:
        found = [compared(NAME), compared(NAME, "u/acc", verdict="worse")]
        text = compare_page(plan, table([cell(NAME), cell(RECIPIENT)], found))
        assert f"<p class='bad'>{NAME}: better than {RECIPIENT} on t/acc; worse than" in text

    def test_links_to_summaries_and_tells_sizes(self, plan: Plan) -> None:
        text = compare_page(plan, table([cell(NAME), cell(RECIPIENT)], []))
        assert f'<a href="../{NAME}/report/summary.html">summary (4 shards)</a>' in text
        assert ">21.6 GB<" in text and "a source" in text
        assert "No two models were measured on the same task." in text

    def test_text_of_strangers_is_escaped(self, plan: Plan) -> None:
        cells = [cell(HOSTILE, HOSTILE, part_of=HOSTILE, headline=False), cell(NAME, HOSTILE)]
        found = [compared(NAME, HOSTILE, reference=HOSTILE, notes=[HOSTILE])]
        text = compare_page(
            plan, table(cells, found, footnotes=[HOSTILE], notes=[HOSTILE], small=[HOSTILE])
        )
        assert "<script" not in text
        assert "http" not in text.replace("https://arxiv.org", "")


class TestReferences:
    def test_a_build_has_its_recipient_and_a_source_that_of_its_build(self, plan: Plan) -> None:
        models = [NAME, BASE, RECIPIENT]
        assert references(plan, models, None) == dict.fromkeys(models, RECIPIENT)

    def test_one_for_all_if_the_configuration_says_so(self, plan: Plan) -> None:
        assert references(plan, [NAME, BASE], BASE) == {NAME: BASE, BASE: BASE}

    def test_the_first_if_the_recipient_is_not_measured(self, plan: Plan) -> None:
        assert references(plan, [NAME, BASE], None) == {NAME: BASE, BASE: BASE}

    def test_a_model_that_is_measured_alone_has_none(self, plan: Plan) -> None:
        assert references(plan, [NAME], None) == {NAME: None}
