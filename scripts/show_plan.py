"""Print what would be built: shards, coefficients, bytes to read, fetch and write."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.plan.files import use_plan
from shardmerge.plan.plan import read_plan
from shardmerge.report.plan_view import plan_text
from shardmerge.run.cli import run, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's JSON file")
    parser.add_argument("--stages", action="store_true", help="print the recipe's documents too")
    args = parser.parse_args()
    plan = read_plan(args.plan)
    use_plan(Path(args.plan).stem)
    show(lambda terminal: plan_text(plan, terminal, stages=args.stages))


if __name__ == "__main__":
    run(main)
