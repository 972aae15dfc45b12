"""Quantise a shard of a verified model with compressed-tensors."""

from __future__ import annotations

from shardmerge.run.worker import COMPRESSED, start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.weightfolders import shard_name
    from shardmerge.export.compressed_making import compress_shard
    from shardmerge.export.jobs import add_scheme_arguments, parsed_options
    from shardmerge.plan.records import load_verified
    from shardmerge.run.cli import claim
    from shardmerge.run.inputlists import parse_args

    parser = argparse.ArgumentParser(description=__doc__)
    add_scheme_arguments(parser)
    parser.add_argument("--verify", required=True, type=Path, help="what verify_model.py wrote")
    parser.add_argument("--shard", required=True, type=Path, help="of the model")
    parser.add_argument(
        "--others", nargs="*", default=[], type=Path, help="shards of what shares scales with it"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--output", required=True, type=Path, help="the shard")
    args = parse_args(parser)
    claim(args.output)

    import torch

    load_verified(args.verify)  # what is not verified is not exported
    torch.set_num_threads(args.threads)
    scheme, selection = parsed_options(args)
    own = selection.of(shard_name(args.shard))
    compress_shard(args.shard, args.others, own, scheme, args.output)


if __name__ == "__main__":
    start_job(main, COMPRESSED)
