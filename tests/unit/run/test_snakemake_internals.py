"""What is asked of Snakemake beyond its documentation, as far as it needs no workflow."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardmerge.run import snakemake_internals as internals


def test_jobs_that_a_process_was_started_for() -> None:
    jobs = ["merge_shard:name=m,shard=model-00001-of-00002", "plan:"]
    words = ["snakemake", "--nolock", "--target-jobs", *jobs, "--", "x"]
    assert internals.target_jobs(words) == [
        ("merge_shard", {"name": "m", "shard": "model-00001-of-00002"}),
        ("plan", {}),
    ]
    assert internals.target_jobs(["snakemake", "plan"]) == []


@pytest.mark.parametrize(
    ("words", "reports"),
    [
        (["all", "--report", "x.html"], True),
        (["--report=x.html"], True),
        (["--reporter", "html"], True),
        (["report", "--report-stylesheet", "x.css"], False),
        (["--report", "x.html", "--report-after-run"], False),
    ],
)
def test_reports(words: list[str], reports: bool) -> None:
    assert internals.is_report(words) is reports


@pytest.mark.parametrize(
    ("head", "asked", "whole"),
    [(True, {}, True), (False, {}, False), (True, {"until": {"a"}}, False)],
)
def test_whole_runs(head: bool, asked: dict, whole: bool) -> None:
    settings = SimpleNamespace(**{"until": set(), "omit_from": set()} | asked)
    workflow = SimpleNamespace(is_main_process=head, dag_settings=settings)
    assert internals.is_whole_run(workflow) is whole


def test_jobs_are_asked_that_only_have_ancient_inputs_of_one_that_runs() -> None:
    """All runs because of `a` but `c` and what follows it: Snakemake must ask these."""
    old, new = SimpleNamespace(is_ancient=True), SimpleNamespace(is_ancient=False)

    class Graph:
        def __init__(self) -> None:
            self.depending = {
                "a": {"b": [old, new], "c": [old]},
                "b": {},
                "c": {"d": [new]},
                "d": {},
            }

        async def update_needrun(self) -> None:
            self.masked = set(self.bfs(self.depending, "a"))

        def bfs(self, direction: Any, job: str) -> Iterator[str]:
            yield job
            for below in direction[job]:
                yield from self.bfs(direction, below)

    class Workflow:
        def _prepare_dag(self) -> None:
            self.dag = Graph()

    workflow = Workflow()
    internals.ask_every_job(workflow)
    workflow._prepare_dag()
    asyncio.run(workflow.dag.update_needrun())
    assert workflow.dag.masked == {"a", "b"}
    assert set(workflow.dag.bfs(workflow.dag.depending, "a")) == {"a", "b", "c", "d"}


def test_params_are_noted_as_before_but_pandas_is_not_loaded(tmp_path: Path) -> None:
    """A later run compares what is noted."""
    pytest.importorskip("pandas")
    code = """
import pkgutil, sys
modules = pkgutil.iter_modules  # the executor for SLURM loads pandas
pkgutil.iter_modules = lambda *a: (one for one in modules(*a) if "slurm" not in one.name)
from types import SimpleNamespace
from snakemake.persistence.file import FilePersistence
from shardmerge.run import snakemake_internals as internals

class Workflow:
    def _prepare_dag(self):
        self.persistence = FilePersistence()

workflow, before = Workflow(), FilePersistence()
internals.look_for_tables_without_loading_pandas(workflow)
workflow._prepare_dag()
own = ["a", ["b", 1], None, {"c": 2.5}]

def noted(persistence, params):
    return [persistence._serialize_param(param) for param in params]

new = noted(workflow.persistence, own)
assert "pandas" not in sys.modules
assert new == noted(before, own) and "pandas" in sys.modules
table = [sys.modules["pandas"].DataFrame({"x": [1]})]
assert noted(workflow.persistence, table) == noted(before, table)
assert isinstance(noted(before, table)[0], str)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(internals.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr


def test_the_schedulers_timers_do_not_hold_up_the_end() -> None:
    """They would for ten minutes; other timers are waited for."""
    code = """
import threading
from types import SimpleNamespace
from snakemake.scheduling.job_scheduler import JobScheduler
from shardmerge.run import snakemake_internals as internals

internals.end_at_once()
scheduler = SimpleNamespace(_open_jobs=threading.Semaphore(0))
JobScheduler._schedule_reevalutation(scheduler, 600)
threading.Timer(0.1, lambda: print("waited for")).start()
assert sum(isinstance(one, threading.Timer) for one in threading.enumerate()) == 2
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(internals.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (0, "waited for\n"), done.stderr


def snakemake(folder: Path, snakefile: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the rule `all` of a Snakefile that may import the package."""
    (folder / "Snakefile").write_text(snakefile)
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *arguments, "all"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(internals.__file__).parents[2])},
        capture_output=True,
        text=True,
    )


SNAKEFILE = """\
import os
from pathlib import Path
from shardmerge.run import snakemake_internals as internals

def end():
    Path("ended").write_text(str(internals.has_tried_all(workflow)))

internals.at_failure(workflow, end)

rule all:
    input: "late", "other"

rule late:
    input: "early"
    output: "late"
    shell: "touch late"

rule early:
    output: "early"
    params: head=os.getpid()
    shell: "%s"

rule other:
    output: "other"
    shell: "touch other"
"""


@pytest.mark.parametrize(
    ("early", "tried_all"),
    [
        ("exit 1", "True"),
        ("kill -TERM {params.head}; sleep 1; exit 1", "False"),
    ],
)
def test_runs_that_end_early_have_not_tried_all(early: str, tried_all: str, tmp_path: Path) -> None:
    done = snakemake(tmp_path, SNAKEFILE % early, "--keep-going")
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "ended").read_text() == tried_all, done.stderr


SHARED = """\
from pathlib import Path
from shardmerge.run import snakemake_internals as internals

internals.take_ancient_inputs_of_any_time(workflow)
internals.leave_in_place(workflow, Path("models"))

rule all:
    input: "merged"

rule merge:
    input: ancient("models/source")
    output: "merged"
    shell: "cp {input} {output}; touch -d '1 hour' {input}"

rule fetch:
    output: update("models/source")
    shell: "%s"
"""


def test_sources_may_be_newer_than_what_was_made_of_them(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "source").write_text("1")
    done = snakemake(tmp_path, SHARED % "exit 1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged").read_text() == "1"


@pytest.mark.parametrize(("fetch", "code"), [("true", 0), ("exit 1", 1)])
def test_sources_that_are_there_stay_as_they_are(fetch: str, code: int, tmp_path: Path) -> None:
    """Another workflow may be reading them: neither touched, nor copied, nor written over."""
    (tmp_path / "models").mkdir()
    source = tmp_path / "models" / "source"
    source.write_text("1")
    before = source.stat()
    done = snakemake(tmp_path, SHARED % fetch, "--until", "fetch", "--forcerun", "fetch")
    assert done.returncode == code, done.stderr
    after = source.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert not (tmp_path / ".snakemake" / "backups").exists()
