"""Put together how a quantised export compares with its model; load it in transformers."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base import forms
from shardmerge.base.files import write_json
from shardmerge.base.weightfolders import shard_name
from shardmerge.check.load import stay_offline
from shardmerge.export.compressed_check import check_compressed
from shardmerge.export.compressed_compare import ShardComparison
from shardmerge.export.jobs import add_scheme_arguments, parsed_options
from shardmerge.package.index import name_within
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_scheme_arguments(parser)
    parser.add_argument("--folder", required=True, type=Path, help="the export's")
    parser.add_argument("--model", required=True, type=Path, help="the model's folder")
    parser.add_argument("--files", nargs="+", required=True, type=Path, help="all of the export")
    parser.add_argument("--shards", nargs="+", required=True, type=Path, help="of compare_shard.py")
    parser.add_argument("--output", required=True, type=Path, help="what was found, JSON")
    args = parse_args(parser)
    claim(args.output)

    args.output.unlink(missing_ok=True)  # an earlier pass must not outlive a failure
    stay_offline()
    scheme, selection = parsed_options(args)
    files = [name_within(path, args.folder) for path in args.files]
    shards = {shard_name(path): forms.read_file(ShardComparison, path) for path in args.shards}
    record = check_compressed(args.folder, files, args.model, args.build, scheme, selection, shards)
    write_json(args.output, forms.written(record))
    count, errors = len(record.errors.tensors), record.errors
    print(f"{count} matrices in {scheme.name}; median error {errors.median:.2g}")


if __name__ == "__main__":
    run(main)
