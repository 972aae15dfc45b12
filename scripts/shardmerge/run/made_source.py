"""The command line of a job that makes a source: which job of the plan, and what it reads."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.engine.watch import Watch
from shardmerge.plan.files import IDENTITIES, used_plan_path
from shardmerge.plan.plan import Plan, read_plan
from shardmerge.run.cli import claim


class _Job(Protocol):
    @property
    def files(self) -> tuple[str, ...]: ...

    @property
    def identities(self) -> tuple[str, ...]: ...


Job = TypeVar("Job", bound=_Job)


def asked(
    description: str | None, jobs: Callable[[Plan], Mapping[str, Job]]
) -> tuple[argparse.Namespace, Job, Watch]:
    """Read the command line; return its arguments, the job, and the watch of what it reads.

    Args:
        description: Of the script.
        jobs: Returns the jobs of a plan that the script does, by digest.

    Raises:
        UserError: If the plan has no such job, or a file is another than it was made for.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--job", required=True, help="digest of the job")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    claim(args.output)

    path = used_plan_path()
    job = jobs(read_plan(path)).get(args.job)
    if job is None:
        raise UserError(f"there is no job {args.job} in the plan", str(path))
    watch = Watch(Identities(IDENTITIES))
    for file, identity in zip(job.files, job.identities, strict=True):
        watch.begin(Path(file), identity)
    return args, job, watch
