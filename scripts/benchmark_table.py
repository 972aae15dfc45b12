"""Put benchmark results of several models and tasks into one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_json, write_text
from shardmerge.benchmark import comparison_table, score_text, scores
from shardmerge.plan.description import load_description
from shardmerge.plan.files import use_plan
from shardmerge.plan.plan import read_plan
from shardmerge.report.parents import parents
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    """Read the command line, combine the results, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", nargs="+", required=True, help="files of benchmark.py")
    parser.add_argument("--csv", help="where to write every column, numbers in full")
    parser.add_argument("--markdown", help="where to write the tasks that were asked for")
    parser.add_argument("--json", help="where to write all that is known of every value")
    parser.add_argument("--plan", help="the plan's JSON file, where --name is given")
    parser.add_argument("--name", help="the build that the JSON compares with what it is made from")
    args = parse_args(parser)
    claim(*filter(None, (args.json, args.csv, args.markdown)))

    table = scores.score_table(scores.load(args.results))
    if args.csv:
        write_text(args.csv, score_text.to_csv(table))
    if args.markdown:
        write_text(args.markdown, score_text.to_markdown(table))
    if args.json:
        made = comparison_table.comparer(args.results)
        pairs = _pairs(args.plan, args.name) if args.name else []
        found = made.compare(pairs)
        write_json(args.json, comparison_table.comparison_json(made, found, pairs))
    print(score_text.to_terminal(table), end="")


def _pairs(path: str, name: str) -> list[tuple[str, str]]:
    """Return a build with each of the models that it is made from."""
    plan = read_plan(path)
    use_plan(Path(path).stem)
    return [(name, parent) for parent in parents(plan, load_description(plan.builds[name].digest))]


if __name__ == "__main__":
    run(main)
