"""What a run asks for when some shards are there: nothing that was deleted, in vain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.large_models import large_plan, llama_70b
from shardmerge.plan.made_jobs import MadeJob
from shardmerge.plan.paths import check_record_path, record_path
from shardmerge.run.built import Built
from shardmerge.run.targets import Targets

NAME = "miquplus-midnight-70b"


class Case:
    """A plan of four shards and a folder where jobs leave what they make."""

    def __init__(self, folder: Any, **settings: Any) -> None:
        self.settings = settings
        self.plan = large_plan(folder, llama_70b(8), files=4, **settings)
        self.shards = self.plan.builds[NAME].shards

    def built(self, **more: Any) -> Any:
        return Built(
            self.plan,
            keep_sources=self.settings.get("keep_sources", True),
            keep_deltas=self.settings.get("deltas", "auto") != "auto",
            **more,
        )

    def make(self, job: Any, checked: Any = True, digest: Any = None) -> None:
        Path(job.output).parent.mkdir(parents=True, exist_ok=True)
        Path(job.output).touch()
        for path in [
            record_path(job.output),
            *([check_record_path(job.output)] if checked else []),
        ]:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps({"spec": digest or job.digest}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestBuilt:
    def test_task_vectors_that_a_build_reads_are_those_of_the_plan(self, folder: Path) -> None:
        case = Case(folder, deltas="store")
        used = {job.output for job in case.plan.deltas}
        assert used and set(targets_of(case).deltas(NAME)) == used

    def test_what_is_kept_stays_an_input(self, folder: Path) -> None:
        case = Case(folder, deltas="store")
        for job in case.shards:
            case.make(job)
            assert case.built().to_make(job) == case.built().to_check(job) == job

    def test_a_model_that_reads_prompts_is_there_at_once_and_asked_for_once(
        self, folder: Path
    ) -> None:
        case = Case(folder, keep_sources=False)
        files = tuple(case.shards[0].sources)
        names = ("",) * len(files)
        job = MadeJob(
            "measured.safetensors", "d", "hidden", (files,), None, names, "benchmark", 1, 1, 1
        )
        case.plan = replace(case.plan, made={"d": job})
        gates = case.plan.schedule.gates(lambda path: False, lambda path: False)
        other = next(path for path in gates if path not in files)
        built = case.built()
        assert built.to_read(job) == files
        assert all(built.gate(path) == [] for path in files)
        assert built.gate(other) == [check_record_path(one) for one in gates[other]]
        Path(job.output).touch()
        assert case.built().to_read(job) == ()
        assert case.built(forced=lambda: True).to_read(job) == files

    def test_a_shard_that_is_done_asks_for_no_sources(self, folder: Path) -> None:
        case = Case(folder, keep_sources=False)
        first, second, *_ = case.shards
        case.make(first)
        built = case.built()
        assert built.to_make(first).sources == built.to_check(first).sources == ()
        assert built.to_make(first).output == first.output
        assert built.to_make(second) == built.to_check(second) == second

    def test_a_shard_that_is_not_checked_has_only_its_check_to_do(self, folder: Path) -> None:
        case = Case(folder, keep_sources=False)
        first = case.shards[0]
        case.make(first, checked=False)
        assert case.built().to_make(first).sources == ()
        assert case.built().to_check(first) == first

    @pytest.mark.parametrize("gone", ["output", "record", "both of another plan"])
    def test_a_shard_that_must_be_made_again_is_checked_again(
        self, folder: Path, gone: str
    ) -> None:
        case = Case(folder, keep_sources=False)
        first = case.shards[0]
        case.make(first, digest="0" * 64 if "plan" in gone else None)
        if gone == "output":
            Path(first.output).unlink()
        if gone == "record":
            Path(record_path(first.output)).write_text("{")
        assert case.built().to_make(first) == case.built().to_check(first) == first

    def test_nothing_is_taken_to_be_there_if_the_user_forces(self, folder: Path) -> None:
        case = Case(folder, keep_sources=False)
        case.make(case.shards[0])
        built = case.built(forced=lambda: True)
        assert built.to_make(case.shards[0]) == case.shards[0]

    def test_gates_are_checks_of_shards_that_are_not_done(self, folder: Path) -> None:
        case = Case(folder, keep_sources=False, disk_budget="27GB")
        paths = {p: case.built().gate(p) for p in case.plan.fetches}
        assert any(paths.values())
        waited = {check for gate in paths.values() for check in gate}
        assert waited <= {check_record_path(job.output) for job in case.shards}
        for job in case.shards:
            case.make(job)
        assert not any(case.built().gate(p) for p in case.plan.fetches)


class TestTaskVectors:
    """Two builds that read the same task vectors, which `auto` deletes after the last of them."""

    @pytest.fixture
    def case(self, folder: Path) -> Any:
        recipe = (
            "name: {0}\nmerge_method: task_arithmetic\nbase_model: a/base\n"
            "models: [{{model: b/tuned, parameters: {{weight: {1}}}}}]\ndtype: float16\n"
        )
        case = Case.__new__(Case)
        case.settings = {"stages": ["x", "y"]}
        text = "---\n".join(recipe.format(*row) for row in (("x", 0.5), ("y", 0.25)))
        case.plan = large_plan(folder, llama_70b(4), text, files=2, deltas="store", **case.settings)
        assert case.plan.deltas
        return case

    def test_are_made_anew_only_for_shards_that_read_them(self, case: Any) -> None:
        jobs = [job for build in case.plan.builds.values() for job in build.shards]
        for job in (*case.plan.deltas, *jobs):
            case.make(job)
        for delta in case.plan.deltas:
            Path(delta.output).unlink()
        built = case.built()
        for job in jobs:
            assert built.to_make(job).deltas == built.to_check(job).deltas == ()
            assert built.to_make(job).sources == job.sources
        assert all(built.to_check(delta).output == "" for delta in case.plan.deltas)

        Path(jobs[0].output).unlink()
        built = case.built()
        assert built.to_make(jobs[0]) == jobs[0]
        assert all(built.to_make(job).deltas == () for job in jobs[1:])


def targets_of(case: Any) -> Any:
    from shardmerge.recipe.settings import load_settings

    return Targets(load_settings({"recipes": ["recipe.yaml"], **case.settings}), case.plan)
