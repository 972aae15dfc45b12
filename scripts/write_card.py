"""Write a model's card."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.files import write_text
from shardmerge.check import scores
from shardmerge.package.card import make_card
from shardmerge.plan.description import load_description
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--card", default="{}", help="the configuration's `card`, as JSON")
    parser.add_argument("--benchmarks", nargs="*", default=[], help="files of benchmark.py")
    parser.add_argument("--output", required=True, type=Path, help="README.md to write")
    args = parse_args(parser)
    claim(args.output)

    try:
        settings = json.loads(args.card)
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", "--card") from None
    table = scores.combine(scores.load(args.benchmarks)) if args.benchmarks else None
    write_text(args.output, make_card(load_description(args.build), settings, table))


if __name__ == "__main__":
    run(main)
