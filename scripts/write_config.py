"""Write a merged model's config.json and the recipe beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.cli import run
from shardmerge.files import load_json, write_text
from shardmerge.package import output_config
from shardmerge.planning import description_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--source", required=True, type=Path, help="the reference's config.json")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--recipe", required=True, type=Path)
    args = parser.parse_args()
    description = load_json(description_path(args.build))
    text = args.source.read_text(encoding="utf-8")
    write_text(args.output, output_config(text, description["dtype"], str(args.source)))
    write_text(args.recipe, description["recipe"]["text"])


if __name__ == "__main__":
    run(main)
