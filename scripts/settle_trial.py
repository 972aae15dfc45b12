"""After a trial is measured: write its scores and its lock, delete weights that are not kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.plan.files import use_plan
from shardmerge.plan.plan import read_plan
from shardmerge.run.cli import claim, run, say
from shardmerge.run.inputlists import parse_args
from shardmerge.sweep.locks import write_lock
from shardmerge.sweep.settling import Settled
from shardmerge.sweep.sweep_files import load_sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--sweep", required=True, help="its file")
    add("--plan", required=True, help="the plan's JSON file")
    add("--results", required=True, help="folder of all results")
    add("--trial", required=True, help="its name")
    add("--task", nargs="+", required=True, help="what was measured")
    add("--known", nargs="+", required=True, metavar="TRIAL=DIGEST", help="what is to be measured")
    add("--output", required=True, type=Path, help="where to write the scores")
    add("--lock", required=True, type=Path, help="where to write the lock of the trial's recipe")
    args = parse_args(parser)
    use_plan(Path(args.plan).stem)
    sweep, plan = load_sweep(args.sweep), read_plan(args.plan)
    known = dict(pair.split("=", 1) for pair in args.known)
    claim(args.output, args.lock)
    write_lock(sweep, args.trial, args.lock)
    settled = Settled(sweep, plan, args.results, args.task, known)
    settled.settle(args.trial, args.output, say)


if __name__ == "__main__":
    run(main)
