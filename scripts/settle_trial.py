"""After a trial is measured: write its scores and its lock, delete weights that are not kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base import claims
from shardmerge.base.files import write_json
from shardmerge.plan.files import use_plan
from shardmerge.plan.plan import read_plan
from shardmerge.run.cli import claim, run, say
from shardmerge.run.inputlists import parse_args
from shardmerge.sweep.best import read_points
from shardmerge.sweep.locks import write_lock
from shardmerge.sweep.settled import identity_in, settled_data
from shardmerge.sweep.sweep_files import load_sweep
from shardmerge.sweep.weights import settle


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
    with claims.claimed(Path(args.results, "sweeps", sweep.name, "weights"), say):
        # of others only those whose measurement is of today's plan: else it is still to come
        settled = [
            n for n, of in known.items() if identity_in(sweep.settled(args.results, n)) == of
        ]
        names = dict.fromkeys([*settled, args.trial])
        files = {name: sweep.result_files(args.results, name, args.task) for name in names}
        points = read_points(sweep, files)
        settle(sweep, plan, points, args.trial, say)
    write_json(args.output, settled_data(sweep, points, args.trial, known[args.trial]))


if __name__ == "__main__":
    run(main)
