"""What a plan costs on a cluster: the simulation against cases that can be done by hand."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.flagship_70b import flagship_plan
from shardmerge.plan.plan import Plan
from tools.simulation.cluster import Grouping, Site, Submission, simulate, submissions

REPOSITORY = Path(__file__).resolve().parents[3]
#: A site without overhead that asks for states all the time.
IDEAL = Site(1, node_rate=100, start=0, short=1, poll=0.01, poll_step=0)
GROUPED = Grouping(checks=4, rest=True)


def merges(*moved: int) -> list[Submission]:
    return [Submission("merge", 1, size, 0) for size in moved]


@pytest.fixture(scope="module")
def flagship() -> Plan:
    return flagship_plan()


class TestByHand:
    def test_one_node_moves_all(self) -> None:
        found = simulate(merges(1000, 2000), IDEAL)
        assert found.merged == pytest.approx(30, abs=0.02)
        assert found.most_moved == 3000
        assert found.idle == pytest.approx(0, abs=0.01)

    def test_two_nodes_halve_it_if_the_jobs_do(self) -> None:
        site = dataclasses.replace(IDEAL, nodes=2)
        assert simulate(merges(1000, 1000), site).merged == pytest.approx(10, abs=0.02)
        assert simulate(merges(1000, 3000), site).idle == pytest.approx(1 / 3, abs=0.01)

    def test_a_shared_file_system_is_the_limit(self) -> None:
        site = dataclasses.replace(IDEAL, nodes=4, shared_rate=200)
        assert simulate(merges(*[1000] * 4), site).merged == pytest.approx(20, abs=0.02)

    def test_two_on_a_node_share_it(self) -> None:
        site = dataclasses.replace(IDEAL, places=2)
        assert simulate(merges(1000, 2000), site).merged == pytest.approx(30, abs=0.02)

    def test_each_waits_and_starts(self) -> None:
        site = dataclasses.replace(IDEAL, start=7, queue=100)
        assert simulate(merges(1000, 1000), site).merged == pytest.approx(134, abs=0.02)

    def test_what_needs_another_starts_when_the_head_has_asked(self) -> None:
        work = [*merges(500), Submission("check", 1, 0, 1, [0])]
        site = dataclasses.replace(IDEAL, poll=60, poll_step=10)
        # Ends at 5 s, known at 60 s; the check ends at 61 s, known at 120 s.
        assert simulate(work, site).seconds == pytest.approx(120)

    def test_questions_grow_apart(self) -> None:
        site = dataclasses.replace(IDEAL, poll=60, poll_step=10, poll_most=75)
        # Asked at 60, 130, 205, 280 s.
        assert simulate(merges(21_000), site).seconds == pytest.approx(280)


class TestPlans:
    def test_every_job_is_submitted_once(self, flagship: Plan) -> None:
        (build,) = flagship.builds.values()
        alone, grouped = (submissions(flagship, g) for g in (Grouping(), GROUPED))
        assert sum(item.jobs for item in alone) == len(alone)
        assert sum(item.jobs for item in grouped) == len(alone)
        assert len(grouped) < len(alone)
        moved = sum(job.bytes_read + job.bytes_written for job in build.shards)
        for work in (alone, grouped):
            assert sum(item.moved for item in work) == moved
            assert all(need < number for number, item in enumerate(work) for need in item.needs)

    def test_more_nodes_never_take_longer(self, flagship: Plan) -> None:
        work = submissions(flagship, GROUPED)
        times = [simulate(work, Site(nodes)).merged for nodes in (1, 2, 4, 8, 16, 29)]
        assert times == sorted(times, reverse=True)

    def test_the_table_of_the_documentation(self, tmp_path: Path) -> None:
        """It is what the command that stands before it prints."""
        page = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
        command = re.search(r"^python (-m tools.simulation .*)$", page, re.MULTILINE)[1]
        plan = subprocess.run(
            [sys.executable, str(REPOSITORY / "tests" / "helpers" / "flagship_70b.py")],
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'scripts'}:{REPOSITORY / 'tests'}"},
            capture_output=True,
            check=True,
            timeout=600,
        )
        (tmp_path / "flagship.json").write_bytes(plan.stdout)
        done = subprocess.run(
            [sys.executable, *command.split()],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout in page
