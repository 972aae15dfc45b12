"""Write a merged model's model.safetensors.index.json."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.cli import run
from shardmerge.files import load_json, write_text
from shardmerge.package import index
from shardmerge.planning import description_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    write_text(args.output, index(load_json(description_path(args.build))))


if __name__ == "__main__":
    run(main)
