"""Write what is known of a model as one HTML page, which the report opens on."""

from __future__ import annotations

import argparse

from shardmerge.base.files import write_text
from shardmerge.plan.plan import read_plan_of
from shardmerge.report.summary_facts import read_findings
from shardmerge.report.summary_page import summary_page
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's JSON file")
    parser.add_argument("--name", required=True, help="the build's name")
    parser.add_argument("--folder", required=True, help="where the build's results lie")
    parser.add_argument("--verified", help="JSON of verify_model.py, if there is one")
    parser.add_argument("--loaded", help="JSON of load_model.py, if there is one")
    parser.add_argument("--table", help="JSON of benchmark_table.py, if there is one")
    parser.add_argument("--statistics", help="JSON of collect_statistics.py, if there is one")
    parser.add_argument("--exports", nargs="*", default=[], help="JSON of checks of exports")
    parser.add_argument("--output", required=True, help="HTML file")
    args = parse_args(parser)
    claim(args.output)
    plan = read_plan_of(args.plan, args.name)
    digest = plan.builds[args.name].digest
    files = (args.verified, args.loaded, args.table, args.statistics, args.exports)
    findings = read_findings(digest, *files)
    write_text(args.output, summary_page(plan, args.name, findings, args.folder))


if __name__ == "__main__":
    run(main)
