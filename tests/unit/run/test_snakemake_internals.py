"""What is asked of Snakemake beyond its documentation, as far as it needs no workflow."""

from __future__ import annotations

from types import SimpleNamespace

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
