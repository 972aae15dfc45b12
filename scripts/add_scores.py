"""Put benchmark results into the card of a finished model, and the card into its checksums."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_json
from shardmerge.benchmark import scores
from shardmerge.package.card import make_card, parse_card_settings
from shardmerge.package.card_scores import receipt
from shardmerge.package.index import replace_text
from shardmerge.plan.description import load_description
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--card", default="{}", help="the configuration's `card`, as JSON")
    parser.add_argument("--results", nargs="+", required=True, help="files of benchmark.py")
    parser.add_argument("--readme", required=True, type=Path, help="the card, beside SHA256SUMS")
    parser.add_argument("--output", required=True, type=Path, help="JSON: what the card has now")
    args = parse_args(parser)
    claim(args.output, args.readme)

    table = scores.score_table(scores.load(args.results))
    text = make_card(load_description(args.build), parse_card_settings(args.card), table)
    replace_text(args.readme, text)
    write_json(args.output, receipt(args.build, args.results))


if __name__ == "__main__":
    run(main)
