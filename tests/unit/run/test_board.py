"""What a run is at: told from Snakemake's events and the jobs' own logs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.workflow import REPOSITORY
from shardmerge.run import board as board_module
from shardmerge.run.board import Board, last_line, reason


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Any) -> Board:
    return Board(clock, total=3)


def begin(
    board: Any,
    number: Any,
    rule: Any = "merge_shard",
    log: Any = "",
    needs: Any = (),
    makes: Any = ("x",),
    **wildcards: Any,
) -> None:
    board.announce(number, rule, wildcards, [log] if log else [], (needs, makes))


class TestProgress:
    @pytest.mark.parametrize(
        ("text", "percent", "said"),
        [
            ("", None, "30 s"),
            ("began\n", None, "30 s"),
            (
                "m.safetensors: 1,000 of 4,000 MB (25 %), 33 MB/s\n",
                25,
                "1,000 of 4,000 MB (25 %), 33 MB/s, 90 s left",
            ),
            ("f: 1.0 GB of 2.0 GB (50 %), 1 GB/s, 3 s left\n", 50, "1.0 GB of 2.0 GB (50 %), "),
            ("Running:   0%| | 0/9\rRunning:  75%|### | 7/9 [00:30<00:10]", 75, "10 s left"),
            ("x: 100 of 100 MB (100 %), 9 MB/s\n", 100, "100 of 100 MB (100 %), 9 MB/s"),
        ],
    )
    def test_is_what_the_log_ends_with(
        self, board: Board, clock: Any, tmp_path: Path, text: str, percent: int | None, said: str
    ) -> None:
        log = tmp_path / "log"
        log.write_text(text)
        begin(board, 1, log=str(log), name="a", shard="model")
        clock.now = 30
        (job,) = board.long_jobs()
        assert job.title == "merging a model"
        found = job.progress(clock())
        assert found[0] == percent
        assert found[1].startswith(said)

    def test_only_long_jobs_are_shown_the_longest_first(self, board: Board, clock: Any) -> None:
        begin(board, 1, "write_card", name="a")
        begin(board, 2, "check_shard", name="a", shard="s")
        clock.now = 1
        begin(board, 3, "run_task", model="a", task="t")
        assert [job.title for job in board.long_jobs()] == ["checking a s", "benchmarking a t"]
        assert board.finish(2) is None
        clock.now = 62
        assert board.finish(3) == "benchmarked a t (61 s)"
        assert (board.done, board.long_jobs()) == (2, [])


class TestEnd:
    def test_a_failed_jobs_sentence_comes_last(self, board: Board, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text("noise\nerror: m, tensor 'x': is odd\n  Write it anew.\n")
        begin(board, 1, log=str(log), name="a", shard="s")
        board.fail(1)
        assert board.ending() == [
            f"error: merging a s: m, tensor 'x': is odd\n  Write it anew.\n  all of it: {log}"
        ]

    def test_what_succeeds_when_it_is_tried_again_did_not_fail(self, board: Board) -> None:
        begin(board, 1, name="a", shard="s")
        board.fail(1)
        begin(board, 1, name="a", shard="s")
        board.finish(1)
        assert board.ending() == []

    def test_results_are_named_once(self, board: Board) -> None:
        wanted = ["r/a/model/x.safetensors", "r/a/model/SHA256SUMS", "r/a/benchmarks/table.json"]
        wanted += ["r/a/report/plan.html", "r/a/report/norms.svg", "r/b/model/SHA256SUMS"]
        wanted += ["r/benchmarks/compare.html"]
        begin(board, 1, "all", needs=wanted, makes=())
        assert board.long_jobs() == []
        assert board.ending() == [
            "model: r/a/model",
            "benchmarks: r/a/benchmarks/table.md",
            "plots: r/a/report",
            "model: r/b/model",
            "comparison: r/benchmarks/compare.html",
        ]

    def test_adapters_and_exports_are_no_models(self, board: Board) -> None:
        wanted = ["r/a/adapter/SHA256SUMS", "r/b/exports/gguf/SHA256SUMS"]
        begin(board, 1, "all", needs=[*wanted, "r/b/exports/gguf.published.json"], makes=())
        assert board.ending() == [
            "adapter: r/a/adapter",
            "export: r/b/exports/gguf",
            "receipt: r/b/exports/gguf.published.json",
        ]

    def test_words_are_those_of_rules_that_exist(self) -> None:
        rules = REPOSITORY / "rules"
        text = "\n".join(path.read_text() for path in rules.glob("*.smk"))
        known = set(re.findall(r"^(?:use )?rule (?:\w+ as )?(\w+)", text, re.MULTILINE))
        assert {*board_module._DOING, *board_module._DONE} <= known


class TestLogs:
    def test_a_log_may_be_missing_or_hostile(self, tmp_path: Path) -> None:
        assert last_line(str(tmp_path / "none")) == ""
        assert reason(str(tmp_path / "none")) == "it says nothing"
        log = tmp_path / "log"
        log.write_bytes(b"\xff\x1b[2J evil\n")
        assert "\x1b" not in last_line(str(log))
        log.write_text("error: \x1b[31mred\n")
        assert "\x1b" not in reason(str(log))

    def test_only_the_end_of_a_long_log_is_read(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text("x" * 100_000 + "\nthe end\n")
        assert last_line(str(log)) == "the end"
