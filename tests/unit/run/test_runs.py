"""Which run a job belongs to, and what another job has made before it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shardmerge.base.files import write_json
from shardmerge.plan.plan import FetchJob, ShardJob
from shardmerge.run import runs


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.RUN_VARIABLE, raising=False)


def began(name: str, at: float = 1000) -> None:
    runs._RUN.parent.mkdir(exist_ok=True)
    runs._RUN.write_text(f"{name}\n")
    os.utime(runs._RUN, (at, at))


class TestReplaced:
    def test_a_later_run_replaces_a_job(self, monkeypatch: pytest.MonkeyPatch) -> None:
        began("first")
        monkeypatch.setenv(runs.RUN_VARIABLE, "first")
        assert not runs.is_replaced()
        began("second")
        assert runs.is_replaced()

    def test_a_job_that_does_not_know_its_run_goes_on(self) -> None:
        began("second")
        assert not runs.is_replaced()

    def test_without_a_run_nothing_is_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(runs.RUN_VARIABLE, "first")
        assert not runs.is_replaced()


def shard_job() -> ShardJob:
    return ShardJob("model/shard.safetensors", "d" * 64, (), (), 0, 3, 0, 0, 0, False, False)


def fetch_job() -> FetchJob:
    return FetchJob("model/shard.safetensors", "o/m", "0" * 40, "f", 3, None, "0" * 40)


def output(at: float = 1001, data: bytes = b"abc") -> Path:
    path = Path("model/shard.safetensors")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (at, at))
    return path


class TestMadeMeanwhile:
    @pytest.mark.parametrize("make", [fetch_job, shard_job])
    @pytest.mark.parametrize(
        ("at", "data", "made"), [(1001, b"abc", True), (1001, b"ab", False), (999, b"abc", False)]
    )
    def test_only_what_is_right_and_newer_than_the_run(
        self, make: Callable, at: float, data: bytes, made: bool
    ) -> None:
        """An older one was there when the run began, and Snakemake wants it made anew."""
        began("run")
        output(at, data)
        write_json("records/shard.json", {"spec": "d" * 64, "size": 3, "sha256": "0" * 64})
        assert runs.made_meanwhile(make(), print) == made

    @pytest.mark.parametrize("record", [None, {}, {"spec": "another", "size": 3}])
    def test_no_shard_of_another_specification(self, record: dict | None) -> None:
        began("run")
        output()
        if record is not None:
            write_json("records/shard.json", record)
        assert not runs.made_meanwhile(shard_job(), print)

    @pytest.mark.parametrize("make", [fetch_job, shard_job])
    def test_not_what_is_missing(self, make: Callable) -> None:
        began("run")
        write_json("records/shard.json", {"spec": "d" * 64, "size": 3, "sha256": "0" * 64})
        assert not runs.made_meanwhile(make(), print)
