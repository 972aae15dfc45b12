"""Compare all models of a run on the same questions, and write one table of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base import forms
from shardmerge.base.files import parse_object, write_json, write_text
from shardmerge.benchmark import comparison_table, comparison_text
from shardmerge.benchmark.comparison_rows import Scores
from shardmerge.plan.files import use_plan
from shardmerge.plan.plan import read_plan
from shardmerge.report.parents import parent_pairs, references
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    """Read the command line, compare, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's JSON file")
    parser.add_argument(
        "--results", nargs="+", required=True, help="files of benchmark.py, samples beside them"
    )
    parser.add_argument("--reference", help="the model that all others are compared with")
    parser.add_argument("--derived", default="{}", metavar="JSON", help="what exports are made of")
    parser.add_argument("--json", required=True, help="where to write all that is known")
    parser.add_argument("--csv", required=True, help="where to write a line for each value")
    parser.add_argument("--markdown", required=True, help="where to write the table")
    parser.add_argument("--flips", required=True, help="CSV of the questions that flipped")
    args = parse_args(parser)
    claim(args.json, args.csv, args.markdown, args.flips)

    plan = read_plan(args.plan)
    use_plan(Path(args.plan).stem)
    made = comparison_table.comparer(args.results)
    models = made.table.models
    derived = {str(k): str(v) for k, v in parse_object(args.derived, "--derived").items()}
    chosen = references(plan, models, args.reference or None, derived)
    found = made.compare(comparison_table.pairs_with(chosen, models))
    pairs = [*parent_pairs(plan, models), *derived.items()]
    data = comparison_table.comparison_json(made, found, pairs)
    data["references"] = chosen
    scores = forms.read(Scores, data)
    text = comparison_text.comparison_markdown(scores)
    write_text(args.csv, comparison_text.comparison_csv(scores))
    write_text(args.markdown, text)
    write_text(args.flips, comparison_text.flips_csv(made.flips(found)))
    write_json(args.json, data)
    print(text, end="")


if __name__ == "__main__":
    run(main)
