"""After a sweep is measured: the weights that are kept are there and right, all others are gone."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base import claims
from shardmerge.base.files import write_json
from shardmerge.plan.files import use_plan
from shardmerge.plan.plan import read_plan
from shardmerge.run.cli import claim, run, say
from shardmerge.run.inputlists import parse_args
from shardmerge.sweep.best import best_trials, read_points
from shardmerge.sweep.scratch import leave_scratch
from shardmerge.sweep.sweep_files import load_sweep
from shardmerge.sweep.weights import drop, kept_trials, model_folder, restore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--sweep", required=True, help="its file")
    add("--plan", required=True, help="the plan's JSON file")
    add("--results", required=True, help="folder of all results")
    add("--task", nargs="+", required=True, help="what was measured")
    add("--output", required=True, type=Path, help="where to write what is kept")
    args = parse_args(parser)
    use_plan(Path(args.plan).stem)
    sweep, plan = load_sweep(args.sweep), read_plan(args.plan)
    claim(args.output)
    names = [candidate.name for candidate in sweep.final]
    files = {name: sweep.result_files(args.results, name, args.task) for name in names}
    points = read_points(sweep, files)
    best, kept = best_trials(sweep, points), kept_trials(sweep, plan, points)
    with claims.claimed(Path(args.results, "sweeps", sweep.name, "weights"), say):
        for name in names:
            if name not in kept:
                build = plan.builds[sweep.build(name)]
                drop(build, say)
                leave_scratch(model_folder(build))
        checks = {name: restore(plan.builds[sweep.build(name)], plan, say) for name in kept}
    left = [name for name in best if name not in kept] if sweep.keep == "best" else []
    if left:
        say(f"`disk_budget` leaves no room for the weights of {', '.join(left)}")
    folders = {name: f"{args.results}/{sweep.build(name)}/model" for name in kept}
    found = {"keep": sweep.keep, "best": best, "kept": folders, "no_room": left, "checks": checks}
    write_json(args.output, found)


if __name__ == "__main__":
    run(main)
