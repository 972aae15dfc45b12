"""The order of shards on a small disk: however jobs are scheduled, the estimate holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.large_models import large_plan, llama_70b
from shardmerge.base.errors import UserError
from shardmerge.plan.schedule import Schedule, make_schedule

NAME = "miquplus-midnight-70b"


@dataclass(frozen=True)
class Job:
    output: str
    sources: tuple[str, ...]
    deltas: tuple[str, ...]
    bytes_written: int


class Disk:
    """A build as Snakemake runs it: any job that may start, at random; what is unused goes.

    Args:
        schedule: What its files wait for.
        deltas, shards: Its jobs.
        fetched: Files and their sizes.
        deltas_go: Whether task vectors are temporary.
        done: Outputs that are there and checked when it begins.
    """

    def __init__(
        self, schedule: Any, deltas: Any, shards: Any, fetched: Any, deltas_go: Any, done: Any = ()
    ) -> None:
        self.jobs = {job.output: job for job in (*deltas, *shards)}
        self.sizes = dict(fetched) | {j.output: j.bytes_written for j in self.jobs.values()}
        self.temporary = {*fetched, *(d.output for d in deltas if deltas_go)}
        self.todo = [output for output in self.jobs if output not in done]
        self.there, self.written = {o for o in done if o not in self.temporary}, set(done)
        self.checked = set(done)
        self.gates = schedule.gates(set(done).__contains__, self.there.__contains__)
        self.began = self.used
        self.highest = self.used

    @property
    def used(self) -> Any:
        return sum(self.sizes[path] for path in self.there)

    def run(self, chance: Any) -> Any:
        while choices := self.choices():
            kind, name = chance.choice(choices)
            if kind == "check":
                self.checked.add(name)
                self.clear()
            else:
                self.there.add(name)
                self.highest = max(self.highest, self.used)
                if kind == "write":
                    self.written.add(name)
        assert self.checked == set(self.jobs), "a build that stops"
        return self.highest

    def choices(self) -> Any:
        wanted = {p for o in self.todo if o not in self.checked for p in self.jobs[o].sources}
        fetches = [
            ("fetch", path)
            for path in sorted(wanted - self.there)
            if path in self.sizes and self.checked.issuperset(self.gates.get(path, ()))
        ]
        found = []
        for output in self.todo:
            job = self.jobs[output]
            needs = [p for p in (*job.sources, *job.deltas) if p in self.sizes]
            if output not in self.written and self.there.issuperset(needs):
                found.append(("write", output))
            elif output in self.written and output not in self.checked:
                found.append(("check", output))
        return fetches + found

    def clear(self) -> None:
        for path in sorted(self.there & self.temporary):
            users = [j for j in self.jobs.values() if path in (*j.sources, *j.deltas)]
            if all(job.output in self.checked for job in users):
                self.there.discard(path)


@st.composite
def builds(draw: Any) -> tuple[Any, ...]:
    """Models with files that overlap unevenly, some of them local, some stored task vectors."""
    count = draw(st.integers(1, 9))
    hub = [f"f{i}" for i in range(draw(st.integers(1, 8)))]
    fetched = {path: draw(st.integers(1, 9)) for path in hub}
    anywhere = st.sampled_from([*hub, "local"])
    deltas = [
        Job(f"d{i}", tuple(draw(st.sets(anywhere, max_size=3))), (), draw(st.integers(1, 5)))
        for i in range(draw(st.integers(0, 3)))
    ]
    of_delta = st.sampled_from([d.output for d in deltas] or [""])
    shards = []
    for i in range(count):
        stored = draw(st.sets(of_delta, max_size=2)) - {""}
        sources = draw(st.sets(anywhere, max_size=4))
        shards.append(Job(f"s{i}", tuple(sorted(sources)), tuple(sorted(stored)), 3 + i % 2))
    deltas = [d for d in deltas if any(d.output in s.deltas for s in shards)]
    used = {p for job in (*deltas, *shards) for p in job.sources}
    return deltas, shards, {p: size for p, size in fetched.items() if p in used}


class TestPeak:
    @settings(max_examples=150, deadline=None)
    @given(builds(), st.booleans(), st.integers(0, 3), st.randoms(use_true_random=False))
    def test_holds_in_whatever_order_jobs_run(
        self, build: Any, deltas_go: Any, more: Any, chance: Any
    ) -> None:
        deltas, shards, fetched = build
        schedule = make_schedule(deltas, shards, fetched, deltas_go=deltas_go)
        if more:
            budget = least_of(deltas, shards, fetched, deltas_go) + more
            schedule = make_schedule(deltas, shards, fetched, deltas_go=deltas_go, budget=budget)
            assert schedule.peak() <= budget
        highest = Disk(schedule, deltas, shards, fetched, deltas_go).run(chance)
        assert highest <= schedule.peak()

    @settings(max_examples=100, deadline=None)
    @given(builds(), st.data(), st.randoms(use_true_random=False))
    def test_holds_when_some_shards_are_there(self, build: Any, data: Any, chance: Any) -> None:
        deltas, shards, fetched = build
        schedule = make_schedule(deltas, shards, fetched, deltas_go=False)
        done = data.draw(st.sets(st.sampled_from(schedule.order)))
        disk = Disk(schedule, deltas, shards, fetched, False, done)
        more = schedule.peak(disk.there.__contains__)
        assert disk.run(chance) - disk.began <= more

    @settings(max_examples=100, deadline=None)
    @given(builds(), st.data(), st.randoms(use_true_random=False))
    def test_holds_when_some_files_wait_for_nothing(
        self, build: Any, data: Any, chance: Any
    ) -> None:
        """Those that a job reads which makes a source: no download of them has a gate."""
        deltas, shards, fetched = build
        early = data.draw(st.sets(st.sampled_from([*fetched, "local"])))
        schedule = make_schedule(deltas, shards, fetched, early=early)
        disk = Disk(schedule, deltas, shards, fetched, True)
        disk.gates = {path: gate for path, gate in disk.gates.items() if path not in early}
        assert disk.run(chance) <= schedule.peak()

    def test_what_jobs_make_before_is_there_from_the_start(self) -> None:
        shards = [Job("s0", ("f", "m"), (), 2), Job("s1", ("g", "m"), (), 2)]
        given = {"f": 3, "g": 3}
        assert make_schedule([], shards, given, made={"m": 7}, budget=7 + 4 + 3).peak() == 14
        with pytest.raises(UserError, match="too little"):
            make_schedule([], shards, given, made={"m": 7}, budget=7 + 4 + 2)

    def test_nothing_at_all(self) -> None:
        assert make_schedule([], [], {}).peak() == 0

    def test_survives_json(self) -> None:
        schedule = make_schedule([], [Job("s", ("f",), (), 2)], {"f": 3})
        assert Schedule.from_json(json.loads(json.dumps(asdict(schedule)))) == schedule


def least_of(deltas: Any, shards: Any, fetched: Any, deltas_go: Any) -> Any:
    """Return the smallest budget that is not refused."""
    low, high = 0, sum(fetched.values()) + sum(j.bytes_written for j in (*deltas, *shards))
    while low < high:
        middle = (low + high) // 2
        try:
            make_schedule(
                deltas, shards, fetched, deltas_go=deltas_go, budget=max(1, middle)
            )  # fmt: skip
            high = middle
        except UserError:
            low = middle + 1
    return low


class TestChain:
    """Ten shards of 1, each from two files of 5 of its own."""

    SHARDS = tuple(Job(f"s{i}", (f"a{i}", f"b{i}"), (), 1) for i in range(10))
    FETCHED = dict.fromkeys((path for job in SHARDS for path in job.sources), 5)

    def test_two_shards_at_a_time_unless_a_budget_is_set(self) -> None:
        schedule = make_schedule([], self.SHARDS, self.FETCHED)
        assert schedule.peak() == 2 * 10 + 10
        gates = schedule.gates(lambda output: False, lambda path: False)
        assert "a0" not in gates
        assert "a1" not in gates
        assert gates["a5"] == gates["b5"]

    def test_the_smallest_budget_is_one_after_the_other(self) -> None:
        schedule = make_schedule([], self.SHARDS, self.FETCHED, budget=20)
        assert schedule.peak() == 20
        gates = schedule.gates(lambda output: False, lambda path: False)
        assert gates["a9"] == ("s8",)

    def test_a_large_budget_needs_no_waiting(self) -> None:
        schedule = make_schedule([], self.SHARDS, self.FETCHED, budget=1000)
        assert schedule.gates(lambda output: False, lambda path: False) == {}

    def test_too_small_a_budget_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"19 B are too little.* is 20 B"):
            make_schedule([], self.SHARDS, self.FETCHED, budget=19)

    def test_kept_sources_say_what_would_help(self) -> None:
        with pytest.raises(UserError, match="keep_sources: false"):
            make_schedule([], self.SHARDS, self.FETCHED, stay=self.FETCHED, budget=30)

    def test_kept_sources_are_all_there_in_the_end(self) -> None:
        schedule = make_schedule([], self.SHARDS, self.FETCHED, stay=self.FETCHED)
        assert schedule.peak() == 110
        assert schedule.gates(lambda output: False, lambda path: False) == {}

    def test_what_is_done_is_not_waited_for(self) -> None:
        schedule = make_schedule([], self.SHARDS, self.FETCHED, budget=20)
        done = {f"s{i}" for i in range(10) if i != 4}
        gates = schedule.gates(done.__contains__, done.__contains__)
        assert gates == {}

    def test_many_shards_have_few_gates(self) -> None:
        shards = [Job(f"s{i}", (f"a{i}",), (), 1) for i in range(2000)]
        schedule = make_schedule([], shards, {f"a{i}": 5 for i in range(2000)})
        gates = schedule.gates(lambda output: False, lambda path: False)
        assert sum(map(len, gates.values())) <= 64 * len(shards)


class TestOrder:
    def test_two_builds_of_the_same_sources_go_side_by_side(self) -> None:
        shards = [Job(f"{b}{i}", (f"f{i}",), (), 0) for b in "xy" for i in range(8)]
        schedule = make_schedule([], shards, {f"f{i}": 10 for i in range(8)})
        assert schedule.peak() <= 20
        assert sorted(schedule.order[:2]) == ["x0", "y0"]

    def test_a_task_vector_comes_before_the_shard_that_reads_it(self) -> None:
        deltas = [Job("d1", ("f1",), (), 1), Job("d0", ("f0",), (), 1)]
        shards = [Job("s0", ("g0",), ("d0",), 1), Job("s1", ("g1",), ("d1", "d0"), 1)]
        order = make_schedule(deltas, shards, dict.fromkeys(["f0", "f1", "g0", "g1"], 5)).order
        assert order == ("d0", "s0", "d1", "s1")


class TestFlagship:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_needs_little_more_than_the_model_itself(self, folder: Path) -> None:
        plan = large_plan(folder, llama_70b(), keep_sources=False)
        model = sum(job.bytes_written for job in plan.builds[NAME].shards)
        largest = max(fetch.size for fetch in plan.fetches.values())
        everything = model + sum(f.size for p, f in plan.fetches.items() if p not in plan.unread)
        assert plan.lean == plan.schedule.peak()
        assert model < plan.lean < model + 8 * largest < 0.45 * everything

    def test_a_budget_that_is_too_small(self, folder: Path) -> None:
        with pytest.raises(UserError, match="100 GB are too little") as caught:
            large_plan(folder, llama_70b(), keep_sources=False, disk_budget="100GB")
        assert "configuration: disk_budget" in str(caught.value)

    def test_sources_that_are_measured_stay(self, folder: Path) -> None:
        more = {"benchmark": {"tasks": ["demo_B"], "models": ["merged", "sources"]}}
        plan = large_plan(folder, llama_70b(20), files=6, keep_sources=False, **more)
        fetched = sum(fetch.size for fetch in plan.fetches.values())
        assert plan.schedule.peak() >= fetched
        more["benchmark"]["models"] = ["merged"]
        plan = large_plan(folder, llama_70b(20), files=6, keep_sources=False, **more)
        assert plan.schedule.peak() < fetched
