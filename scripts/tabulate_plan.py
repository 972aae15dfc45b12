"""Write how a model is made, shard by shard, as an HTML page."""

from __future__ import annotations

import argparse

from shardmerge.base.files import write_text
from shardmerge.plan.plan import read_plan_of
from shardmerge.report.plan_table import plan_page
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's JSON file")
    parser.add_argument("--name", required=True, help="the build's name")
    parser.add_argument("--output", required=True, help="HTML file")
    args = parser.parse_args()
    claim(args.output)
    plan = read_plan_of(args.plan, args.name)
    write_text(args.output, plan_page(plan, args.name))


if __name__ == "__main__":
    run(main)
