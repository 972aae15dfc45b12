"""Find of which rows those of tokens that a model lacks are made, and with what weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.plan.files import IDENTITIES, used_plan_path
from shardmerge.plan.plan import read_plan
from shardmerge.plan.transplants import load_transplant_spec, make_terms
from shardmerge.run.cli import claim, run


def main() -> None:
    from shardmerge.engine.transplant import write_terms
    from shardmerge.engine.watch import Watch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True, help="digest of the job")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    claim(args.output)

    path = used_plan_path()
    job = read_plan(path).transplants.get(args.job)
    if job is None:
        raise UserError(f"there is no job {args.job} in the plan", str(path))
    spec = load_transplant_spec(args.job)
    watch, files = Watch(Identities(IDENTITIES)), [Path(file) for file in job.files]
    for file, identity in zip(files, job.identities, strict=True):
        watch.begin(file, identity)
    terms = make_terms(spec, files, threads=args.threads, device=args.device)
    watch.confirm()
    write_terms(terms, args.output)
    print(terms.told)


if __name__ == "__main__":
    run(main)
