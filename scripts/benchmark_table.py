"""Put benchmark results of several models and tasks into one table."""

from __future__ import annotations

import argparse

from shardmerge.base.files import write_json, write_text
from shardmerge.benchmark import score_text, scores
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    """Read the command line, combine the results, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", nargs="+", required=True, help="files of benchmark.py")
    parser.add_argument("--csv", help="where to write every column, numbers in full")
    parser.add_argument("--markdown", help="where to write the tasks that were asked for")
    parser.add_argument("--json", help="where to write all that is known of every value")
    args = parse_args(parser)
    claim(*filter(None, (args.json, args.csv, args.markdown)))

    table = scores.score_table(scores.load(args.results))
    if args.csv:
        write_text(args.csv, score_text.to_csv(table))
    if args.markdown:
        write_text(args.markdown, score_text.to_markdown(table))
    if args.json:
        write_json(args.json, scores.table_json(table))
    print(score_text.to_terminal(table), end="")


if __name__ == "__main__":
    run(main)
