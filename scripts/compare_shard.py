"""Compare a quantised shard with the model's: decode it, measure how far its values are."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base import forms
    from shardmerge.base.files import write_json
    from shardmerge.base.weightfolders import shard_name
    from shardmerge.export.compressed_compare import compare_shard
    from shardmerge.export.jobs import add_scheme_arguments, parsed_options
    from shardmerge.run.cli import claim

    parser = argparse.ArgumentParser(description=__doc__)
    add_scheme_arguments(parser)
    parser.add_argument("--export", required=True, type=Path, help="from compress_shard.py")
    parser.add_argument("--config", required=True, type=Path, help="the export's config.json")
    parser.add_argument("--shard", required=True, type=Path, help="of the model")
    parser.add_argument("--output", required=True, type=Path, help="what was found, JSON")
    args = parser.parse_args()
    claim(args.output)

    args.output.unlink(missing_ok=True)  # an earlier pass must not outlive a failure
    _, selection = parsed_options(args)
    own = selection.of(shard_name(args.shard))
    found = compare_shard(args.export, args.shard, args.config, own)
    write_json(args.output, forms.written(found))
    print(f"{len(found.errors)} quantised matrices compared, {found.same} tensors are the model's")


if __name__ == "__main__":
    start_job(main)
