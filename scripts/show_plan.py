"""Print what would be built: shards, coefficients, bytes to read, fetch and write."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.plan.files import use_plan
from shardmerge.plan.plan import read_plan
from shardmerge.report.plan_view import plan_text
from shardmerge.run.cli import run, show
from shardmerge.run.inputlists import parse_args
from shardmerge.sweep.forecast import forecast, measured_speeds
from shardmerge.sweep.sweep_files import load_sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's JSON file")
    parser.add_argument("--stages", action="store_true", help="print the recipe's documents too")
    parser.add_argument("--sweeps", nargs="*", default=[], help="files of sweeps in the plan")
    parser.add_argument("--results", default="results", help="folder of all results")
    parser.add_argument("--benchmarks", type=Path, default=Path("benchmarks"),
                        help="folder of what Snakemake measured")  # fmt: skip
    args = parse_args(parser)
    plan = read_plan(args.plan)
    use_plan(Path(args.plan).stem)
    sweeps = list(map(load_sweep, args.sweeps))
    speeds = measured_speeds(plan, args.benchmarks)
    left = {sweep.name: forecast(sweep, plan, args.results, speeds) for sweep in sweeps}
    show(lambda terminal: plan_text(plan, terminal, stages=args.stages, sweeps=left))


if __name__ == "__main__":
    run(main)
