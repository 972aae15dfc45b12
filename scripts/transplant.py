"""Find of which rows those of tokens that a model lacks are made, and with what weights."""

from __future__ import annotations

from pathlib import Path

from shardmerge.plan.transplants import load_transplant_spec, make_terms
from shardmerge.run.cli import run
from shardmerge.run.made_source import asked


def main() -> None:
    from shardmerge.engine.transplant import write_terms

    args, job, watch = asked(__doc__, lambda plan: plan.transplants)
    files = [Path(file) for file in job.files]
    spec = load_transplant_spec(args.job)
    terms = make_terms(spec, files, threads=args.threads, device=args.device)
    watch.confirm()
    write_terms(terms, args.output)
    print(terms.told)


if __name__ == "__main__":
    run(main)
