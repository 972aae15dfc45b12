"""Write how a model is made, shard by shard, as an HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import write_text
from shardmerge.plan.files import use_plan
from shardmerge.plan.plan import read_plan
from shardmerge.report.plan_table import plan_page
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's JSON file")
    parser.add_argument("--name", required=True, help="the build's name")
    parser.add_argument("--output", required=True, help="HTML file")
    args = parser.parse_args()
    claim(args.output)
    plan = read_plan(args.plan)
    use_plan(Path(args.plan).stem)
    if args.name not in plan.builds:
        hint = did_you_mean(args.name, plan.builds)
        raise UserError(f"the plan builds no model {args.name!r}", args.plan, hint)
    write_text(args.output, plan_page(plan, args.name))


if __name__ == "__main__":
    run(main)
