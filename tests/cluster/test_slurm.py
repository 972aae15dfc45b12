"""The workflow on a real SLURM: the same bytes, several nodes, limits kept, GPUs asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from heads import Head, Held
from loopback import Cluster
from test_whole import NAME as DEMO
from test_whole import demo

from helpers.workflow import BASE, FINETUNED, NAME, RECIPIENT, Project, sha256
from shardmerge.base import claims

pytestmark = pytest.mark.slurm

UNTIL = ("--until", "merge_shard")


def files(project: Project) -> dict[str, str]:
    """Return the SHA-256 of all files of the demo's model."""
    folder = project.folder / "results" / DEMO / "model"
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


class TestDemo:
    def test_the_bytes_are_those_of_a_local_build(self, cluster: Cluster, tmp_path: Path) -> None:
        project = demo(tmp_path / "demo", benchmark={"tasks": []})
        head = Head(project, cluster, "all")
        local = demo(tmp_path / "local", benchmark={"tasks": []})
        local.build("models")
        text = head.finish()
        assert files(project) == files(local)
        assert len(files(project)) > 10
        jobs = list(cluster.jobs("all").values())
        assert {job.state for job in jobs} == {"COMPLETED"}
        assert len({job.node for job in jobs}) > 1
        assert {cluster.gpus(job.id) for job in jobs} == {0}
        # Each shard, its checks by fours, package, summary and report as one each.
        assert len(jobs) < int(re.search(r"(\d+) of \1 steps \(100%\) done", text)[1]) / 2
        assert project.parts() == []
        assert list(project.folder.rglob(".*.claim")) == []
        assert project.pending("all") == []


class TestLimits:
    def test_a_full_queue_and_a_limit_on_jobs(self, cluster: Cluster, tmp_path: Path) -> None:
        project = Project.create(tmp_path / "project")
        fillers = [cluster.submit("--exclusive", "--nodes=1") for _ in range(3)]
        cluster.wait(lambda: len(cluster.jobs("RUNNING")) == 3)
        head = Head(project, cluster, "--jobs", "2", *UNTIL)
        head.wait(lambda: len(cluster.jobs("PENDING")) == 2)
        cluster.cancel(*fillers)
        most = 0

        def ended() -> bool:
            nonlocal most
            most = max(most, len(set(cluster.jobs()) - set(fillers)))
            return head.process.poll() is not None

        cluster.wait(ended, 240)
        head.finish()
        assert most == 2
        assert len(head.submitted()) == len(project.shards()) == 5

    def test_more_memory_on_the_second_attempt(self, cluster: Cluster, tmp_path: Path) -> None:
        project = Project.create(tmp_path / "project", layers=2)
        memory = "merge_shard:mem_mb=30 * 30 ** (attempt - 1)"
        shard = f"results/{NAME}/model/model-00001-of-00005.safetensors"
        text = Head(project, cluster, "--set-resources", memory, "--", shard).finish()
        jobs = list(cluster.jobs("all").values())
        assert [job.memory for job in jobs] == ["30M", "900M"]
        assert [job.state == "COMPLETED" for job in jobs] == [False, True]
        assert text.count("Trying to restart job") == 1


class TestGpus:
    def test_two_jobs_see_a_card_each(self, cluster: Cluster, tmp_path: Path) -> None:
        """There is no card: the jobs get as far as saying so."""
        recipe = yaml.safe_dump(
            {
                "name": NAME,
                "merge_method": "iso_c",  # which a card computes faster
                "base_model": RECIPIENT,
                "models": [{"model": BASE}, {"model": FINETUNED}],
                "dtype": "float16",
            }
        )
        project = Project.create(tmp_path / "project", recipe)
        project.configure(device="cuda")
        names = [f"model-0000{i}-of-00005" for i in (3, 4)]
        shards = [f"results/{NAME}/model/{name}.safetensors" for name in names]
        with Held(project, *names) as held:
            only = "merge_shard:slurm_extra='--nodelist=n2'"
            more = ("--set-resources", only, "--retries", "0", "--", *shards)
            head = Head(project, cluster, *more)
            head.wait(held.reached)
            assert [cluster.gpus(job) for job in cluster.jobs("RUNNING")] == [1, 1]
            owners = [claims.holder(project.folder / shard) for shard in shards]
            seen = {psutil.Process(o.pid).environ()["CUDA_VISIBLE_DEVICES"] for o in owners}
            assert seen == {"0", "1"}
        assert head.end() != 0
        for name in names:
            log = project.folder / "logs" / "merge_shard" / NAME / f"{name}.log"
            assert "error: " in log.read_text()
            assert "cuda" in log.read_text().lower()
            assert "Traceback" not in log.read_text()

    def test_benchmarks_ask_for_as_many_as_are_configured(self, tmp_path: Path) -> None:
        benchmark = {"tasks": ["demo_B"], "include_path": "config/tasks/demo"}
        for device, asked in (("cuda", 2), ("cpu", 0)):
            options = benchmark | {"device": device, "gpus": 2}
            project = demo(tmp_path / device, benchmark=options)
            text = project.run("-n", "benchmarks").stdout
            found = re.findall(r"^rule run_task:.*?resources: ([^\n]*)", text, re.M | re.S)
            assert len(found) == 4
            assert all(f"gpu={asked}" in row for row in found)


class TestClaims:
    def test_slurm_tells_that_an_owner_is_gone(
        self, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {**cluster.environment, "SLURM_CLUSTER_NAME": "loopback"}.items():
            monkeypatch.setenv(name, value)
        job = cluster.submit()
        code = (
            "import dataclasses, json, os, pathlib, sys\n"
            "from shardmerge.base.owner import this_process\n"
            "there = dataclasses.replace(this_process('x'), boot='far', job=sys.argv[2])\n"
            "pathlib.Path(sys.argv[1]).write_text(json.dumps(there.to_json()))\n"
            "os.utime(sys.argv[1], (1, 1))\n"
        )
        path = tmp_path / ".out.claim"
        scripts = str(Path(claims.__file__).parents[2])
        subprocess.run(
            [sys.executable, "-c", code, str(path), job], cwd=scripts, check=True, timeout=60
        )
        patience = claims.Patience(stale=float("inf"))
        cluster.wait(lambda: cluster.jobs("RUNNING"))
        assert claims.holder(tmp_path / "out", patience).job == job
        cluster.cancel_all()
        ask_again()
        assert claims.holder(tmp_path / "out", patience) is None


def ask_again() -> None:
    """Forget what SLURM answered: it is asked again only after half a minute."""
    from shardmerge.base import owner

    owner._asked.cache_clear()
