"""What goes wrong on clusters: jobs cancelled, out of time, nodes lost, the head killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from heads import Head, Held, comments
from loopback import Cluster

from helpers.workflow import NAME, Project
from shardmerge.base import claims

pytestmark = pytest.mark.slurm

UNTIL = ("--until", "merge_shard")
NAMES = [f"model-0000{i}-of-00005" for i in range(1, 6)]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which nothing has run."""
    return Project.create(tmp_path_factory.mktemp("fresh") / "project")


@pytest.fixture(scope="module")
def expected(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of the shards, built on this machine."""
    project = fresh.copy(tmp_path_factory.mktemp("local") / "project")
    project.build()
    return project.shards()


def check(project: Project, expected: dict[str, str]) -> None:
    """Make sure that all shards are there, right, and nothing besides."""
    assert project.shards() == expected
    assert project.parts() == []
    assert list(project.folder.rglob(".*.claim*")) == []
    assert project.pending_shards().isdisjoint(expected)


class TestJobs:
    def test_cancelled_lost_with_its_node_or_out_of_time(
        self, cluster: Cluster, fresh: Project, expected: dict[str, str], tmp_path: Path
    ) -> None:
        """One run, three mishaps: each held job is at the point where it writes its shard."""
        project = fresh.copy(tmp_path / "project")
        names = cancelled, lost, late = NAMES[:3]
        shards = [f"results/{NAME}/model/{name}.safetensors" for name in names]
        with Held(project, *names) as held:
            runtime = ("--set-resources", "merge_shard:runtime=attempt")
            head = Head(project, cluster, *runtime, "--", *shards)
            head.wait(held.reached)
            first = comments(cluster)
            assert len({first[name][0].node for name in names}) == 3
            cluster.cancel(first[cancelled][0].id)
            node = first[lost][0].node
            cluster.lose_node(node)
            held.release(cancelled, lost)
            head.wait(lambda: len(comments(cluster)[late]) == 2, 180)
        head.finish()
        after = comments(cluster)
        assert [job.state for job in after[cancelled]] == ["CANCELLED", "COMPLETED"]
        assert [job.state for job in after[late]] == ["TIMEOUT", "COMPLETED"]
        assert [job.limit for job in after[late]] == ["1:00", "2:00"]
        (again,) = after[lost]  # SLURM itself started it again, under its number
        assert again.state == "COMPLETED"
        assert again.node != node
        check(project, {f"{name}.safetensors": expected[f"{name}.safetensors"] for name in names})


class TestHead:
    def test_killed_while_jobs_run_and_wait(
        self, cluster: Cluster, fresh: Project, expected: dict[str, str], tmp_path: Path
    ) -> None:
        """Two jobs write, one waits in the queue, two shards are done when the head is killed."""
        project = fresh.copy(tmp_path / "project")
        model = project.folder / "results" / NAME / "model"
        writing, waiting = NAMES[:2], NAMES[2]
        with Held(project, *writing, waiting) as held:
            first = Head(project, cluster, *UNTIL)
            first.wait(held.reached)
            first.wait(lambda: first.done() == 2)
            # The third is put back into the queue, as if it had never got a node.
            (job,) = comments(cluster)[waiting]
            cluster.hold(job.id)
            first.kill()
            done = {p.name: p.stat() for p in model.glob("*.safetensors")}
            assert len(done) == 2
            assert project.run("--unlock").returncode == 0
            held.release(waiting)

            second = Head(project, cluster, "--slurm-keep-successful-logs", *UNTIL)
            second.wait(lambda: len(second.submitted()) == 3)
            second.wait(lambda: second.done() == 1)
            third = (model / f"{waiting}.safetensors").stat()
            # The first run's job gets its node at last, and finds that it is not needed.
            cluster.release(job.id)
            cluster.wait(lambda: comments(cluster)[waiting][0].state == "FAILED")
            assert (model / f"{waiting}.safetensors").stat().st_ino == third.st_ino
            # The two that were writing still are; their duplicates wait for them.
            owners = [claims.holder(model / f"{name}.safetensors") for name in writing]
            assert {owner.job for owner in owners} <= set(first.submitted())
        second.finish()
        cluster.wait(lambda: not cluster.jobs())
        for name in writing:
            assert [job.state for job in comments(cluster)[name]] == ["COMPLETED"] * 2
        for name, before in done.items():
            now = (model / name).stat()
            assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        logs = project.folder / "logs" / "slurm"
        left = [p for p in logs.rglob("*.log") if "nothing is left to do" in p.read_text()]
        assert len(left) == 2, "each shard was written once"
        check(project, expected)
