"""Benchmark results as plain data, and the table that is made of them."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.benchmark import harness, score_text, scores
from shardmerge.benchmark.plain import Scrubber, plain


def result(
    model: Any = "merged",
    task: Any = "demo_B",
    value: Any = 0.925,
    stderr: Any = 0.0187,
    **config: Any,
) -> dict[Any, Any]:
    """Return a result as ``evaluation.save`` writes it."""
    return {
        "model_name": model,
        "requested_task": task,
        "results": {
            task: {"alias": task, "sample_len": 200, "acc,none": value, "acc_stderr,none": stderr}
        },
        "configs": {task: {"task": task}},
        "versions": {task: 1.0},
        "n-shot": {task: 0},
        "n-samples": {task: {"original": 200, "effective": 200}},
        "higher_is_better": {task: {"acc": True}},
        "task_hashes": {task: "0123456789abcdef"},
        "lm_eval_version": "0.4.13",
        "transformers_version": "5.23.0",
        "torch_version": "2.13.0",
        "config": {"limit": None, "dtype": "float32", "random_seed": 0} | config,
    }


def group(model: Any = "merged") -> Any:
    """Return a result of a group with two parts."""
    made = result(model, "suite", 0.7)
    for part, value in (("suite_a", 0.6), ("suite_b", 0.8)):
        made["results"][part] = {"acc,none": value, "acc_stderr,none": 0.02}
        made["n-shot"][part] = 0
    return made


class TestCombine:
    def test_rows_and_columns_stand_in_the_order_of_the_results(self) -> None:
        table = scores.score_table(
            [result("b", "t2"), result("b", "t1"), result("a", "t2"), result("a", "t1")]
        )
        assert table.models == ("b", "a")
        assert [column.label for column in table.columns] == ["t2/acc", "t1/acc"]
        assert len(table.cells) == 4
        assert table.footnotes == ()

    def test_values_errors_and_settings_are_the_files(self) -> None:
        table = scores.score_table([result(value=0.25, stderr=0.03, limit=50)])
        cell = table.cells["merged", table.columns[0]]
        assert (cell.value, cell.stderr, cell.samples) == (0.25, 0.03, 200)
        assert cell.settings["limit"] == 50
        assert table.columns[0].higher_is_better is True

    def test_a_standard_error_that_is_no_number_is_none(self) -> None:
        table = scores.score_table([result(stderr="N/A")])
        assert table.cells["merged", table.columns[0]].stderr is None

    def test_parts_of_a_group_are_not_headlines(self) -> None:
        table = scores.score_table([group()])
        assert {c.task: c.headline for c in table.columns} == {
            "suite": True,
            "suite_a": False,
            "suite_b": False,
        }

    def test_a_group_without_a_value_stands_for_what_is_in_it(self) -> None:
        """As `openllm`: a group that has no value, with tasks and a group that has one."""
        made = group()
        made["requested_task"] = "board"
        made["results"] = {"board": {"alias": "board"}} | made["results"]
        made["results"]["alone"] = {"acc,none": 0.3}
        made["group_subtasks"] = {"board": ["alone", "suite"], "suite": ["suite_a", "suite_b"]}
        table = scores.score_table([made])
        assert [(c.task, c.part_of) for c in table.columns] == [
            ("alone", None),
            ("suite", None),
            ("suite_a", "suite"),
            ("suite_b", "suite"),
        ]
        assert score_text.to_markdown(table).startswith("| model | alone/acc | suite/acc ↑ |")
        results = scores.card_results(table, "merged")
        assert [r.dataset_name for r in results] == ["alone", "suite"]

    def test_groups_that_hold_each_other_end(self) -> None:
        made = group()
        made["group_subtasks"] = {"suite": ["suite_a"], "suite_a": ["suite", "suite_b"]}
        assert len(scores.score_table([made]).columns) == 3

    def test_all_tasks_of_a_tag_are_headlines(self) -> None:
        tag = group()
        tag["requested_task"] = "some_tag"
        assert all(column.headline for column in scores.score_table([tag]).columns)

    def test_every_filter_is_a_column(self) -> None:
        made = result()
        made["results"]["demo_B"] = {"exact_match,strict": 0.1, "exact_match,flexible": 0.2}
        labels = [column.label for column in scores.score_table([made]).columns]
        assert labels == ["demo_B/exact_match,strict", "demo_B/exact_match,flexible"]

    def test_two_different_results_of_one_task_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"'merged' has two results of demo_B/acc"):
            scores.score_table([result(value=0.1), result(value=0.2)])

    def test_a_task_measured_alone_and_in_a_group_is_one_column(self) -> None:
        part = result(task="suite_a", value=0.6, stderr=0.02)
        alone = {"versions": {}, "task_hashes": {}, "n-samples": {}, "higher_is_better": {}}
        table = scores.score_table([group(), part | alone])
        assert [c.label for c in table.columns] == ["suite/acc", "suite_a/acc", "suite_b/acc"]


class TestFootnotes:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"config": {"limit": 50, "dtype": "float32", "random_seed": 0}}, "limit 50"),
            ({"config": {"limit": None, "dtype": "auto", "random_seed": 0}}, "computed in auto"),
            ({"config": {"limit": None, "dtype": "float32", "random_seed": 7}}, "seeds 7"),
            ({"n-shot": {"demo_B": 5}}, "5 examples in the prompt"),
            (
                {"config": {"limit": None, "dtype": "float32", "random_seed": 0, "model": "vllm"}},
                "options backend vllm",
            ),
            ({"versions": {"demo_B": 2.0}}, "version 2.0 of the task"),
            ({"lm_eval_version": "0.4.8"}, "lm-eval 0.4.8"),
            ({"transformers_version": "4.57.0"}, "transformers 4.57.0"),
            ({"torch_version": "2.9.0"}, "torch 2.9.0"),
            ({"task_hashes": {"demo_B": "fedcba9876543210"}}, "questions of hash fedcba98"),
        ],
    )
    def test_a_result_with_other_settings_is_marked(
        self, change: dict[str, Any], said: str
    ) -> None:
        table = scores.score_table([result("a"), result("b"), result("odd") | change])
        (note,) = table.footnotes
        assert note.startswith(f"demo_B of odd: {said}; others: ")
        column = table.columns[0]
        assert table.cells["odd", column].notes == (1,)
        assert table.cells["a", column].notes == table.cells["b", column].notes == ()
        for text in (score_text.to_markdown(table), score_text.to_terminal(table)):
            assert "0.925 ± 0.019 [1]" in text
            assert f"[1] {note}" in text
        assert note in score_text.to_csv(table)

    def test_other_questions_are_not_told_where_the_limit_explains_them(self) -> None:
        odd = result("odd", limit=50) | {"task_hashes": {"demo_B": "ffff"}}
        (note,) = scores.score_table([result("a"), result("b"), odd]).footnotes
        assert "hash" not in note

    def test_tasks_may_differ_from_each_other(self) -> None:
        assert scores.score_table([result(), result(task="other", limit=9)]).footnotes == ()

    def test_the_majority_is_the_measure_whatever_the_order(self) -> None:
        table = scores.score_table([result("odd", limit=5), result("a"), result("b")])
        assert table.cells["odd", table.columns[0]].notes == (1,)

    def test_nothing_of_the_results_is_changed(self) -> None:
        results = [result("a"), result("b", limit=5)]
        before = copy.deepcopy(results)
        scores.score_table(results)
        assert results == before


class TestText:
    TABLE = scores.score_table(
        [result("a|b", "t"), result("c", "t", 0.5, None), result("c", "ppl", 12.3456, 0.5)]
    )

    def test_markdown_has_a_line_per_model_and_escapes_bars(self) -> None:
        lines = score_text.to_markdown(self.TABLE).splitlines()
        assert lines[0] == "| model | t/acc ↑ | ppl/acc ↑ |"
        assert lines[2] == "| a\\|b | 0.925 ± 0.019 | - |"
        assert lines[3] == "| c | 0.500 | 12.35 ± 0.50 |"

    def test_csv_has_full_numbers_and_errors(self) -> None:
        rows = list(csv.DictReader(io.StringIO(score_text.to_csv(self.TABLE))))
        assert rows[0]["t/acc"] == "0.925"
        assert rows[0]["t/acc_stderr"] == "0.0187"
        assert rows[0]["ppl/acc"] == ""
        assert rows[1]["ppl/acc"] == "12.3456"

    def test_parts_of_groups_have_a_table_of_their_own(self) -> None:
        table = scores.score_table([group(), group("other")])
        assert "suite_a" in score_text.to_csv(table)
        whole, parts = score_text.to_markdown(table).split("In suite:\n\n")
        assert "suite_a" not in whole
        assert "| merged | 0.700 ± 0.019 |" in whole
        assert parts.splitlines()[:3:2] == [
            "| task | merged | other |",
            "| suite_a/acc | 0.600 ± 0.020 | 0.600 ± 0.020 |",
        ]
        assert "\nIn suite:\ntask " in score_text.to_terminal(table)

    def test_many_tasks_are_rows(self) -> None:
        table = scores.score_table([result(task=f"t{n:02}") for n in range(9)])
        lines = score_text.to_markdown(table).splitlines()
        assert lines[0] == "| task | merged |"
        assert lines[2].startswith("| t00/acc ↑ | 0.925")

    def test_caption_tells_harness_questions_and_examples(self) -> None:
        assert score_text.caption(scores.score_table([result(), result(task="x")])) == (
            "Measured with lm-eval 0.4.13, transformers 5.23.0, computed in float32. "
            "Each task: 200 questions, 0-shot. ± is one standard error."
        )
        other = result(task="x", limit=50) | {"n-shot": {"x": 5}}
        other["n-samples"]["x"]["effective"] = 50
        text = score_text.caption(scores.score_table([result(), other]))
        assert "demo_B: 200 questions, 0-shot; x: 50 questions (limit 50), 5-shot." in text

    def test_caption_of_a_group_counts_its_parts(self) -> None:
        made = group()
        made["n-samples"] = {part: {"effective": 30} for part in ("suite_a", "suite_b")}
        made["n-shot"] = {"suite_a": 2, "suite_b": 2}
        text = score_text.caption(scores.score_table([made]))
        assert "60 questions, 2-shot." in text

    def test_caption_of_a_probe_counts_passages_once(self) -> None:
        made = group()
        made["n-samples"] = {part: {"effective": 30} for part in ("suite_a", "suite_b")}
        made["n-shot"] = {}
        del made["lm_eval_version"]
        text = json.dumps(made).replace("suite", "kl")
        assert "30 passages" in score_text.caption(scores.score_table([json.loads(text)]))

    def test_terminal_lines_are_aligned(self) -> None:
        lines = score_text.to_terminal(self.TABLE).splitlines()
        assert lines[2].index("0.925") + len("0.925 ± 0.019") == lines[3].index("0.500") + 5

    def test_json_has_a_record_per_value(self) -> None:
        data = scores.table_json(self.TABLE)
        assert data["models"] == ["a|b", "c"]
        assert [(c["model"], c["label"], c["value"]) for c in data["cells"]] == [
            ("a|b", "t/acc", 0.925),
            ("c", "t/acc", 0.5),
            ("c", "ppl/acc", 12.3456),
        ]


class TestCardResults:
    def test_a_card_carries_them_there_and_back(self) -> None:
        from huggingface_hub import ModelCard, ModelCardData

        made = result(limit=50)
        made["configs"]["demo_B"]["dataset_path"] = "someone/demo"
        table = scores.score_table([made, group(), result("other")])
        data = ModelCardData(model_name="merged", eval_results=scores.card_results(table, "merged"))
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n# merged\n")
        first, second = card.data.eval_results
        assert (first.dataset_type, first.dataset_name) == ("someone/demo", "demo_B")
        assert (first.metric_type, first.metric_name, first.metric_value) == (
            "accuracy",
            "acc",
            0.925,
        )
        assert first.dataset_args == {"num_few_shot": 0, "limit": 50}
        assert first.source_name == "lm-evaluation-harness 0.4.13"
        assert (second.dataset_name, second.metric_value) == ("suite", 0.7)

    def test_an_unknown_model_is_an_error_with_a_guess(self) -> None:
        with pytest.raises(UserError, match=r"(?s)no results of a model 'mergd'.*'merged'"):
            scores.card_results(scores.score_table([result()]), "mergd")


class TestLoad:
    def test_another_json_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "config.json"
        path.write_text('{"results": {}}')
        with pytest.raises(UserError, match="is not a benchmark result"):
            scores.load([path])


class TestPlain:
    def test_what_json_has_not_becomes_text(self) -> None:
        assert plain({"a": math.nan, 1: -math.inf, "t": (1, 2.5, None, True)}) == {
            "a": "nan",
            "1": "-inf",
            "t": [1, 2.5, None, True],
        }

    def test_numpy_and_torch_values_become_pythons(self) -> None:
        import numpy
        import torch

        value = plain([numpy.float32(0.5), numpy.int64(3), numpy.bool_(True), torch.ones(2)])
        assert value == [0.5, 3, True, [1.0, 1.0]]
        assert [type(v) for v in value] == [float, int, bool, list]

    def test_sets_functions_and_objects_have_one_text(self) -> None:
        assert plain({"b", "a", "c"}) == ["a", "b", "c"]
        assert plain(math.floor) == "math.floor"
        assert plain(object()) == "builtins.object"
        assert plain(Path("a/b")) == "a/b"

    @pytest.mark.parametrize("seed", ["0", "1"])
    def test_the_text_does_not_depend_on_the_hash_seed(self, seed: str) -> None:
        code = "from shardmerge.benchmark.plain import plain; print(plain({'b', 'a', 'c', 'd', 1}))"
        scripts = Path(__file__).parents[3] / "scripts"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(scripts)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "[1, 'a', 'b', 'c', 'd']"


class TestScrubber:
    def test_folders_of_this_machine_and_addresses_go(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path.parent))
        scrub = Scrubber([Path("config/tasks"), tmp_path / "deep" / "lm_eval"])
        assert scrub({"a": [f"{tmp_path}/config/tasks/demo/x.yaml", 3]}) == {
            "a": ["config/tasks/demo/x.yaml", 3]
        }
        assert scrub(f"see {tmp_path}/deep/lm_eval/tasks") == "see lm_eval/tasks"
        assert scrub(f"{tmp_path}/data.json") == "./data.json"
        assert scrub(f"{tmp_path.parent}/.cache/x") == "~/.cache/x"
        assert scrub("<function f at 0x7f00aa>") == "<function f>"


class TestExplain:
    def test_no_network_is_told_as_such_however_deep(self) -> None:
        try:
            try:
                raise ConnectionRefusedError("no route")
            except OSError as error:
                raise RuntimeError("could not load") from error
        except RuntimeError as error:
            assert "the Hub cannot be reached" in harness.reason_of(error)

    def test_offline_mode_is_no_network(self) -> None:
        from huggingface_hub.errors import OfflineModeIsEnabled

        assert "the Hub cannot be reached" in harness.reason_of(OfflineModeIsEnabled("off"))

    def test_errors_for_people_speak_for_themselves(self) -> None:
        assert harness.reason_of(UserError("no", "here", "do that")) == "here: no\n  do that"

    def test_a_failure_that_is_not_foreseen_is_not_explained_away(self) -> None:
        assert harness.reason_of(ZeroDivisionError("division by zero")) is None
