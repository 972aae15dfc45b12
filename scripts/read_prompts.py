"""Let a model read prompts, and write where its hidden states point, layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.benchmark.hidden import read_prompts
from shardmerge.check.load import stay_offline
from shardmerge.engine.watch import Watch
from shardmerge.plan.files import IDENTITIES, used_plan_path
from shardmerge.plan.plan import read_plan
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True, help="digest of the job")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    claim(args.output)

    path = used_plan_path()
    job = read_plan(path).hidden.get(args.job)
    if job is None:
        raise UserError(f"there is no job {args.job} in the plan", str(path))
    watch = Watch(Identities(IDENTITIES))
    for file, identity in zip(job.files, job.identities, strict=True):
        watch.begin(Path(file), identity)
    stay_offline()
    read_prompts(
        Path(job.folder),
        job.prompts,
        job.mode,
        args.output,
        device=args.device,
        threads=args.threads,
        confirm=watch.confirm,
    )
    print(f"read the prompts of {len(job.prompts)} experts")


if __name__ == "__main__":
    run(main)
