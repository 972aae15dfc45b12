"""Put beside converted weights what makes them a model: configuration, tokenizer, index, record."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from shardmerge.run.cli import run
from shardmerge.run.inputlists import parse_args
from shardmerge.sources.pickles import finish_conversion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="folder of the pickles")
    parser.add_argument("--weights", required=True, nargs="+", type=Path, help="what was made")
    parser.add_argument("--files", nargs="*", default=[], help="names of files to copy")
    parser.add_argument("--record", required=True, help="JSON: what was converted")
    args = parse_args(parser)

    weights = [path.name for path in args.weights]
    finish_conversion(
        args.weights[0].parent, args.model, args.files, weights, json.loads(args.record)
    )


if __name__ == "__main__":
    run(main)
