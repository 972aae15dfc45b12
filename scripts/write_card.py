"""Write a merged model's card."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from shardmerge.card import model_card
from shardmerge.cli import run
from shardmerge.files import load_json, write_text
from shardmerge.planning import description_path
from shardmerge.scores import combine, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--card", required=True, type=json.loads, help="the configuration's card")
    parser.add_argument("--benchmarks", nargs="*", default=[], help="benchmark results")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    table = combine(load(args.benchmarks)) if args.benchmarks else None
    write_text(args.output, model_card(load_json(description_path(args.build)), args.card, table))


if __name__ == "__main__":
    run(main)
