"""Plot where the time of merge jobs goes."""

from __future__ import annotations

import argparse

from shardmerge.base.weightfolders import shard_name
from shardmerge.plan.records import load_record
from shardmerge.report.timings import draw_timings, timing
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--records", nargs="*", default=[], help="JSON records, named as the shards"
    )
    parser.add_argument("--output", required=True, help="SVG file")
    args = parse_args(parser)
    claim(args.output)
    rows = [
        timing(shard_name(path).removesuffix(".safetensors"), load_record(path))
        for path in args.records
    ]
    draw_timings(rows, args.output)


if __name__ == "__main__":
    run(main)
