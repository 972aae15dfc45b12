"""Write the page that compares all models of a run."""

from __future__ import annotations

import argparse

from shardmerge.base.files import write_text
from shardmerge.plan.plan import read_plan
from shardmerge.report.compare_page import compare_page
from shardmerge.report.summary_facts import read_scores
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's JSON file")
    parser.add_argument("--table", required=True, help="JSON of compare_benchmarks.py")
    parser.add_argument("--output", required=True, help="HTML file")
    args = parser.parse_args()
    claim(args.output)
    write_text(args.output, compare_page(read_plan(args.plan), read_scores(args.table)))


if __name__ == "__main__":
    run(main)
