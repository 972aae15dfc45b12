"""Add up what the checks of a model's shards measured: task vectors, parents, what is kept."""

from __future__ import annotations

import argparse

from shardmerge.base.files import write_json, write_text
from shardmerge.base.forms import written
from shardmerge.plan.description import load_description
from shardmerge.plan.statistics import load_statistics
from shardmerge.report.frame import frame_of
from shardmerge.report.interference import collect, interference_csv
from shardmerge.report.interference_words import warnings
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build's description")
    parser.add_argument("--checks", nargs="*", default=[], help="from check_shard.py")
    parser.add_argument("--output", required=True, help="JSON file")
    parser.add_argument("--table", required=True, help="CSV file")
    args = parse_args(parser)
    claim(args.output, args.table)
    build = load_description(args.build)
    shards = [found for path in args.checks if (found := load_statistics(path))]
    found = collect(build.name, list(build.sources), frame_of(build.coefficients), shards)
    write_text(args.table, interference_csv(found))
    write_json(args.output, written(found))
    for warning in warnings(found):
        print(warning)


if __name__ == "__main__":
    run(main)
