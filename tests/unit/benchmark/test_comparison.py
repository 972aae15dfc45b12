"""Models compared on stored answers: what is tested, what is not and why, and what is said."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.benchmark.comparison import Comparer, Comparison
from shardmerge.benchmark.comparison_rows import Scores, value_text
from shardmerge.benchmark.comparison_table import comparer, comparison_json, pairs_with
from shardmerge.benchmark.comparison_text import (
    comparison_csv,
    comparison_markdown,
    flips_csv,
)

RIGHT, WRONG = 1.0, 0.0


def write(
    folder: Path,
    model: str,
    answers: Mapping[str, Sequence[Any]],
    value: float | None = None,
    *,
    asked: str = "t",
    metric: str = "acc",
    up: bool | None = True,
    prompt: str = "p",
    parts: Mapping[str, float] | None = None,
    samples: bool = True,
    **config: Any,
) -> Path:
    """Write a result and its samples as a benchmark job does.

    Args:
        folder: Of all models.
        model: Its name.
        answers: Values of each task's questions; None is a question that was not asked.
        value: Of what was asked for; its mean if there is none.
        asked: Task or group.
        metric: Its name.
        up: Whether higher is better.
        prompt: What the prompts' hashes begin with.
        parts: Values of a group's tasks.
        samples: Whether there are samples.
        config: Settings.
    """
    if value is None:
        given = [v for rows in answers.values() for v in rows if v is not None]
        value = sum(given) / len(given)
    rows = {asked: value} | dict(parts or {})
    result = {
        "model_name": model,
        "requested_task": asked,
        "results": {
            t: {f"{metric},none": v, f"{metric}_stderr,none": 0.1} for t, v in rows.items()
        },
        "group_subtasks": {asked: list(answers)} if asked not in answers else {},
        "n-samples": {task: {"effective": len(found)} for task, found in answers.items()},
        "higher_is_better": dict.fromkeys(rows, {metric: up} if up is not None else {}),
        "config": {"limit": None, "num_fewshot": 0} | config,
    }
    path = folder / model / f"{asked}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    lines = [
        {
            "task": task,
            "filter": "none",
            "doc_id": i,
            "doc_hash": f"{task}{i}",
            "target_hash": "h",
            "prompt_hash": f"{prompt}{i}",
            "metrics": [metric],
            metric: answer,
            "filtered_resps": [str(answer)],
        }
        for task, found in answers.items()
        for i, answer in enumerate(found)
        if answer is not None
    ]
    if samples:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        path.with_suffix(".samples.jsonl").write_text(text)
    return path


def compared(*paths: Path) -> tuple[Comparer, list[Comparison]]:
    made = comparer(paths)
    first, *others = made.table.models
    return made, made.compare([(model, first) for model in others])


def scores(made: Comparer, found: list[Comparison]) -> Scores:
    return forms.read(Scores, json.loads(json.dumps(comparison_json(made, found))))


def only(*paths: Path) -> Comparison:
    (one,) = compared(*paths)[1]
    return one


class TestRightAndWrong:
    def test_is_mcnemars_test(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 9 + [RIGHT] * 91})
        merged = write(tmp_path, "merged", {"t": [RIGHT] * 9 + [WRONG] + [RIGHT] * 90})
        one = only(base, merged)
        assert one.found
        assert (one.found.test, one.found.up, one.found.down) == ("mcnemar", 9, 1)
        assert one.found.p == pytest.approx(22 / 1024)
        assert (one.verdict, one.adjusted) == ("better", one.found.p)

    def test_many_comparisons_need_more(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 9 + [RIGHT] * 91})
        paths = [
            write(tmp_path, f"m{i}", {"t": [RIGHT] * 9 + [WRONG] + [RIGHT] * 90}) for i in range(3)
        ]
        verdicts = compared(base, *paths)[1]
        assert {one.verdict for one in verdicts} == {"unclear"}
        assert verdicts[0].adjusted == pytest.approx(3 * 22 / 1024)

    @pytest.mark.parametrize(
        ("up", "verdict"), [(True, "better"), (False, "worse"), (None, "differs")]
    )
    def test_what_is_better_the_task_says(
        self, tmp_path: Path, up: bool | None, verdict: str
    ) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 30}, up=up)
        assert only(base, write(tmp_path, "m", {"t": [RIGHT] * 30}, up=up)).verdict == verdict

    def test_true_and_false_are_right_and_wrong(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [False] * 30})
        one = only(base, write(tmp_path, "m", {"t": [True] * 30}))
        assert one.found and one.found.test == "mcnemar"

    def test_intervals_of_scores_are_no_certainty(self, tmp_path: Path) -> None:
        made, _ = compared(write(tmp_path, "a", {"t": [RIGHT] * 20}))
        low, high = made.interval("a", made.table.columns[0]) or (0.0, 0.0)
        assert low == pytest.approx(20 / (20 + 1.959964**2)) and high == 1.0


class TestAgreement:
    def test_is_in_the_table_with_parents(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [RIGHT] * 6 + [WRONG] * 4})
        merged = write(tmp_path, "m", {"t": [RIGHT] * 5 + [WRONG] * 5})
        made, found = compared(base, merged)
        data = comparison_json(made, found, [("m", "base")])
        (one,) = forms.read(Scores, json.loads(json.dumps(data))).agreements
        assert (one.model, one.other, one.task) == ("m", "base", "t")
        assert (one.questions, one.right) == (10, 5)
        assert one.kappa == pytest.approx(0.8)


class TestOtherValues:
    def test_are_drawn_in_pairs(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [i / 40 for i in range(40)]})
        merged = write(tmp_path, "m", {"t": [i / 40 + 0.01 for i in range(40)]})
        one = only(base, merged)
        assert one.found and one.found.test == "bootstrap"
        assert one.verdict == "better" and one.found.up == 40
        assert one.found.low == pytest.approx(0.01)

    def test_a_perplexity_is_made_from_sums_and_lower_is_better(self, tmp_path: Path) -> None:
        def ppl(model: str, loss: float) -> Path:
            rows = [[-loss * (10 + i), 10 + i] for i in range(40)]
            return write(
                tmp_path, model, {"t": rows}, math.exp(loss), metric="word_perplexity", up=False
            )

        one = only(ppl("base", 2.0), ppl("m", 1.5))
        assert one.found and one.found.difference == pytest.approx(math.exp(1.5) - math.exp(2))
        assert one.verdict == "better"

    def test_a_value_of_all_answers_at_once_has_no_test(self, tmp_path: Path) -> None:
        rows = [[i % 2, 1] for i in range(30)]
        base = write(tmp_path, "base", {"t": rows}, 0.123, metric="mcc")
        one = only(base, write(tmp_path, "m", {"t": rows}, 0.456, metric="mcc"))
        assert (one.found, one.verdict) == (None, "untested")
        assert "no mean over questions" in one.notes[0]

    def test_text_is_no_number(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": ["nan", ["a", "b"]]}, 0.5)
        one = only(base, write(tmp_path, "m", {"t": ["nan", ["a", "b"]]}, 0.5))
        assert "are stored as numbers" in one.notes[0]


class TestGroups:
    A, B = [RIGHT] * 10, [WRONG] * 30

    def test_of_questions_that_count_alike(self, tmp_path: Path) -> None:
        parts = {"a": 1.0, "b": 0.0}
        base = write(tmp_path, "base", {"a": self.A, "b": self.B}, 0.25, asked="g", parts=parts)
        better = {"a": self.A, "b": [RIGHT] * 30}
        merged = write(tmp_path, "m", better, 1.0, asked="g", parts={"a": 1.0, "b": 1.0})
        _, found = compared(base, merged)
        whole = next(one for one in found if one.column.task == "g")
        assert whole.found and (whole.found.test, whole.found.questions) == ("mcnemar", 40)
        assert (whole.found.up, whole.verdict) == (30, "better")

    def test_of_tasks_that_count_alike(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"a": self.A, "b": self.B}, 0.5, asked="g")
        better = {"a": self.A, "b": [RIGHT] * 15 + [WRONG] * 15}
        one = only(base, write(tmp_path, "m", better, 0.75, asked="g"))
        assert one.found and one.found.test == "bootstrap"
        assert one.found.difference == pytest.approx(0.25)
        assert one.verdict == "better"

    def test_their_parts_are_a_family_of_their_own(self, tmp_path: Path) -> None:
        parts = {"a": 1.0, "b": 0.0}
        base = write(tmp_path, "base", {"a": self.A, "b": self.B}, 0.25, asked="g", parts=parts)
        better = {"a": self.A, "b": [RIGHT] * 6 + [WRONG] * 24}
        merged = write(tmp_path, "m", better, 0.4, asked="g", parts={"a": 1.0, "b": 0.2})
        by_task = {one.column.task: one for one in compared(base, merged)[1]}
        assert by_task["g"].adjusted == pytest.approx(2 / 64)
        assert by_task["b"].adjusted == pytest.approx(2 * 2 / 64)

    def test_with_a_task_without_answers(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"a": self.A, "b": []}, 1.0, asked="g")
        one = only(base, write(tmp_path, "m", {"a": self.A, "b": []}, 1.0, asked="g"))
        assert one.verdict == "untested"


class TestOtherQuestions:
    def test_only_common_questions_count(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 20}, limit=20)
        one = only(base, write(tmp_path, "m", {"t": [RIGHT] * 10}, limit=10))
        assert one.found and one.found.questions == 10
        assert one.notes == ("of the 10 questions that both answered",)

    def test_none_in_common(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 5})
        one = only(base, write(tmp_path, "m", {"t": [None] * 5 + [RIGHT] * 5}))
        assert one.notes == ("they have answered no common questions",)

    def test_other_settings_are_not_compared(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 20})
        one = only(base, write(tmp_path, "m", {"t": [RIGHT] * 20}, num_fewshot=5))
        assert one.verdict == "untested"
        assert one.notes == ("measured differently: 5 against 0 examples in the prompt",)

    def test_other_prompts_are_told(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 20})
        one = only(base, write(tmp_path, "m", {"t": [RIGHT] * 20}, prompt="q"))
        assert one.verdict == "better" and one.notes == ("the same questions in other prompts",)

    def test_samples_may_be_missing(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 20})
        one = only(base, write(tmp_path, "m", {"t": [RIGHT] * 20}, samples=False))
        assert one.verdict == "untested" and "no answers" in one.notes[0]

    def test_a_task_that_one_model_lacks_is_no_comparison(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 20})
        assert compared(base, write(tmp_path, "m", {"u": [RIGHT] * 20}, asked="u"))[1] == []

    @pytest.mark.parametrize("line", ["{", "[]", "{}", '{"doc_id": "x"}', "\xff", "3"])
    def test_damaged_samples_are_one_sentence(self, tmp_path: Path, line: str) -> None:
        path = write(tmp_path, "base", {"t": [WRONG] * 2})
        path.with_suffix(".samples.jsonl").write_bytes(line.encode("latin-1") + b"\n")
        with pytest.raises(UserError, match=r"t\.samples\.jsonl"):
            comparer([path])


class TestTold:
    def table(self, folder: Path, count: int) -> tuple[Comparer, list[Comparison]]:
        base = write(folder, "base", {"t": [WRONG] * count})
        return compared(base, write(folder, "m", {"t": [RIGHT, RIGHT] + [WRONG] * (count - 2)}))

    def test_twenty_questions_are_too_few(self, tmp_path: Path) -> None:
        data = comparison_json(*self.table(tmp_path, 20))
        first, second = data["small"]
        assert first == "This table is too small to tell which model is better."
        assert second.startswith("t has only 20 questions. A difference below 0.30 cannot be told")
        assert "at least 6 answers must change" in second

    def test_a_large_difference_is_seen_in_a_small_table(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 20})
        made = scores(*compared(base, write(tmp_path, "m", {"t": [RIGHT] * 20})))
        assert made.small[0] == "This table is too small to tell small differences."
        assert comparison_markdown(made).startswith(made.small[0])

    def test_five_questions_tell_nothing_whatever_they_are(self, tmp_path: Path) -> None:
        data = comparison_json(*self.table(tmp_path, 5))
        assert "no difference can be told from chance" in data["small"][1]

    def test_two_hundred_are_not_too_few(self, tmp_path: Path) -> None:
        data = comparison_json(*self.table(tmp_path, 200))
        assert data["small"] == []
        (note,) = data["notes"]
        assert "McNemar" in note and "Holm" in note and "1 comparison." in note

    def test_flips_are_listed(self, tmp_path: Path) -> None:
        made, found = self.table(tmp_path, 20)
        rows = list(csv.DictReader(io.StringIO(flips_csv(made.flips(found)))))
        assert [(r["model"], r["doc_id"], r["change"]) for r in rows] == [
            ("m", "0", "gained"),
            ("m", "1", "gained"),
        ]

    def test_markdown_and_csv(self, tmp_path: Path) -> None:
        base = write(tmp_path, "base", {"t": [WRONG] * 50})
        data = scores(*compared(base, write(tmp_path, "m", {"t": [RIGHT] * 50})))
        text = comparison_markdown(data)
        assert "| m | 1.000 [0.929, 1.000] ▲ |" in text
        assert "| t/acc ↑ | m | base | +1.000 [+0.887, +1.000] | 50 won, 0 lost of 50 |" in text
        rows = list(csv.DictReader(io.StringIO(comparison_csv(data))))
        assert [r["difference_verdict"] for r in rows] == ["", "better"]
        assert rows[1]["difference_low"] == "0.886884"

    def test_is_the_same_every_time(self, tmp_path: Path) -> None:
        first, again = (json.dumps(comparison_json(*self.table(tmp_path, 30))) for _ in range(2))
        assert first == again

    def test_no_comparison_is_no_note(self, tmp_path: Path) -> None:
        data = scores(*compared(write(tmp_path, "a", {"t": [RIGHT] * 5})))
        assert data.notes == data.comparisons == ()
        assert comparison_markdown(data).startswith("| task | a |")

    def test_large_values_have_fewer_digits(self) -> None:
        assert value_text(12.345, 10.0, 14.0) == "12.35 [10.00, 14.00]"


def test_a_model_is_not_compared_with_itself_or_nothing() -> None:
    assert pairs_with({"a": "b", "b": "b", "c": None}, ["a", "b", "c", "d"]) == [("a", "b")]
