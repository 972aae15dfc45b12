"""Which run a job belongs to, and what another job has made before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardmerge import runs
from shardmerge.files import write_json


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.VARIABLE, raising=False)


def began(name: str, at: float = 1000) -> None:
    runs._RUN.parent.mkdir(exist_ok=True)
    runs._RUN.write_text(f"{name}\n")
    os.utime(runs._RUN, (at, at))


class TestReplaced:
    def test_a_later_run_replaces_a_job(self, monkeypatch: pytest.MonkeyPatch) -> None:
        began("first")
        monkeypatch.setenv(runs.VARIABLE, "first")
        assert not runs.is_replaced()
        began("second")
        assert runs.is_replaced()

    def test_a_job_that_does_not_know_its_run_goes_on(self) -> None:
        began("second")
        assert not runs.is_replaced()

    def test_without_a_run_nothing_is_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(runs.VARIABLE, "first")
        assert not runs.is_replaced()


class TestMadeMeanwhile:
    @pytest.mark.parametrize(
        ("at", "right", "made"), [(1001, True, True), (1001, False, False), (999, True, False)]
    )
    def test_only_what_is_right_and_newer_than_the_run(
        self, at: float, right: bool, made: bool
    ) -> None:
        """An older one was there when the run began, and Snakemake wants it made anew."""
        began("run")
        Path("out").touch()
        os.utime("out", (at, at))
        assert runs.made_meanwhile("out", lambda: right, print) == made

    def test_not_what_is_missing(self) -> None:
        began("run")
        assert not runs.made_meanwhile("out", lambda: True, print)


class TestIsMade:
    def test_a_shard_and_its_record(self) -> None:
        Path("out").write_bytes(b"abc")
        assert not runs.is_made("out", "record.json", "digest")
        write_json("record.json", {"spec": "digest", "size": 3})
        assert runs.is_made("out", "record.json", "digest")
        assert not runs.is_made("out", "record.json", "another")
        Path("out").write_bytes(b"ab")
        assert not runs.is_made("out", "record.json", "digest")
        Path("out").unlink()
        assert not runs.is_made("out", "record.json", "digest")
