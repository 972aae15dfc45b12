"""Make a small source that merges read: what a model makes of a text, its norm, rows of tokens."""

from __future__ import annotations

import argparse
import contextlib
import platform
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.base.unfinished import Keeping
from shardmerge.check.load import stay_offline
from shardmerge.engine.watch import Watch
from shardmerge.package.provenance import tool_versions
from shardmerge.plan.files import IDENTITIES, used_plan_path
from shardmerge.plan.made_jobs import MadeJob
from shardmerge.plan.making import MADE_KINDS, MakeTask, load_made_spec
from shardmerge.plan.plan import read_plan
from shardmerge.run.cli import claim, run, say
from shardmerge.run.progress import CountProgress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True, help="digest of the job")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    claim(args.output)

    job = _asked(args.job)
    watch = Watch(Identities(IDENTITIES))
    for file, identity in zip(job.files, job.identities, strict=True):
        watch.begin(Path(file), identity)
    stay_offline()
    kind = MADE_KINDS[job.kind]
    task = MakeTask(
        job,
        load_made_spec(job),
        args.output,
        device=args.device,
        threads=args.threads,
        confirm=watch.confirm,
        progress=CountProgress(),
        keeping=Keeping({"job": args.job} if kind.portable else _facts(args), say=say),
    )
    say(kind.make(task))


def _asked(digest: str) -> MadeJob:
    path = used_plan_path()
    job = read_plan(path).made.get(digest)
    if job is None:
        raise UserError(f"there is no job {digest} in the plan", str(path))
    return job


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    """Return all that decides the bits of what a job has done: another one starts anew."""
    import torch

    card = None
    with contextlib.suppress(AssertionError, RuntimeError, ValueError):  # that is no card
        card = torch.cuda.get_device_name(args.device)
    versions = tool_versions()
    return {
        "job": args.job,
        "threads": args.threads,
        "device": args.device,
        "processor": [_processor(), torch.backends.cpu.get_cpu_capability(), card],
        "tools": {name: versions[name] for name in sorted(versions) if name != "shardmerge"},
    }


def _processor() -> str:
    """Return what the processor is called, or at least its kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    run(main)
