"""What a run that is not whole still lacks, for a report of what is there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import PurePosixPath

from shardmerge.base.text import plural
from shardmerge.plan.paths import CHECKSUMS
from shardmerge.run.targets import Targets


def present(files: Iterable[str]) -> list[str]:
    """Return the files that are there."""
    return [file for file in files if os.path.lexists(file)]


def unfinished(targets: Targets) -> dict[str, list[str]]:
    """Return, for each model and adapter that is not whole, what it lacks: a few words each.

    Args:
        targets: What the workflow makes.
    """
    found = {name: list(_lacks(targets, name)) for name in targets.plan.models}
    found |= {name: list(_adapter_lacks(targets, name)) for name in targets.plan.adapters}
    return {name: lacks for name, lacks in found.items() if lacks}


def _adapter_lacks(targets: Targets, name: str) -> Iterable[str]:
    jobs = targets.plan.adapters[name].factors
    if rest := len(jobs) - len(present(job.output for job in jobs)):
        yield f"{rest} of {plural(len(jobs), 'file')} of factors to be written"
    if not present([targets.paths.adapter_file(name, CHECKSUMS)]):
        yield "the adapter's folder"


def _lacks(targets: Targets, name: str) -> Iterable[str]:
    shards = targets.shards(name)
    if rest := len(shards) - len(present(shards)):
        yield f"{rest} of {plural(len(shards), 'shard')} to be written"
    paths = targets.paths
    steps = [
        (paths.build(name, "verify.json"), "verification"),
        (paths.model_file(name, CHECKSUMS), "checksums"),
        *(
            (path, "the test that transformers loads it")
            for path in targets.loading(name, waits=True)
        ),
        *((path, "benchmarks") for path in targets.table(name)),
    ]
    for path, what in steps:
        if not present([path]):
            yield what
    pages = targets.report_of(name)
    if absent := [PurePosixPath(page).stem for page in pages if not present([page])]:
        yield f"pages of this report: {', '.join(absent)}"
