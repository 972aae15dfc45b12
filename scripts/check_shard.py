"""Recompute a sample of a written shard from its sources."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.cli import run
from shardmerge.files import write_json
from shardmerge.planning import load_spec
from shardmerge.recompute import check_shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="digest of the specification")
    parser.add_argument("--shard", required=True, type=Path)
    parser.add_argument("--sources", nargs="*", default=[], type=Path, help="in its order")
    parser.add_argument("--deltas", nargs="*", default=[], type=Path)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    result = check_shard(load_spec(args.spec), args.shard, args.sources, args.deltas)
    write_json(args.output, result)


if __name__ == "__main__":
    run(main)
