"""How many compute threads a merge job has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardmerge.engine.memory import ready_places
from shardmerge.plan.plan import ShardJob
from shardmerge.run.resources import fixed_threads, threads_of_merges


def job(memory: int = 400, ahead: int = 100) -> ShardJob:
    return ShardJob("m.safetensors", "d" * 64, (), (), 1, 1, memory, ahead, 1, False, False)


def machine(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    sizes = {"SC_PHYS_PAGES": memory, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)


class TestAuto:
    @pytest.mark.parametrize(
        ("cores", "shards", "expected"), [(16, 5, 3), (16, 1, 16), (2, 5, 1), (5, 5, 1), (1, 1, 1)]
    )
    def test_shares_cores_among_shards(self, cores: int, shards: int, expected: int) -> None:
        threads = threads_of_merges("auto", [f"no/{k}" for k in range(shards)], cores)
        assert threads(job()) == expected

    def test_counts_shards_that_are_missing(self, tmp_path: Path) -> None:
        paths = [tmp_path / name for name in "abcd"]
        for path in paths[:3]:
            path.touch()
        assert threads_of_merges("auto", map(str, paths), 8)(job()) == 8
        paths[3].touch()
        assert threads_of_merges("auto", map(str, paths), 8)(job()) == 8

    def test_jobs_whose_tensors_need_nothing_have_one(self) -> None:
        assert threads_of_merges("auto", ["no"], 16)(job(ahead=0)) == 1

    def test_leaves_half_of_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine(monkeypatch, 2 * 2 * (400 + 4 * 100))
        threads = threads_of_merges("auto", ["no", "neither"], 16)
        assert threads(job()) == 4
        assert threads(job(ahead=99)) == 4
        assert threads(job(ahead=101)) == 3
        assert threads(job(memory=900)) == 1

    def test_elsewhere_it_is_one(self) -> None:
        assert threads_of_merges("auto", ["no"], None)(job()) == 1


class TestNumber:
    @pytest.mark.parametrize("cores", [None, 2, 64])
    def test_is_taken_as_it_is(self, cores: int | None) -> None:
        threads = threads_of_merges(3, ["no"], cores)
        assert threads(job()) == threads(job(ahead=0)) == 3

    def test_of_jobs_whose_bits_may_depend_on_it(self) -> None:
        assert fixed_threads("auto") == 1
        assert fixed_threads(4) == 4


def test_memory_is_that_of_the_places_that_tensors_have() -> None:
    for threads in range(1, 9):
        assert job().memory_for(threads) == 400 + (ready_places(threads) - 1) * 100
