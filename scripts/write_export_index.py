"""Write the index that tells which shard of an export holds which tensor."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import write_text
    from shardmerge.base.weightfolders import shard_name
    from shardmerge.export.compressed_check import export_index
    from shardmerge.run.cli import claim
    from shardmerge.run.inputlists import parse_args

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, type=Path, help="the export's")
    parser.add_argument("--shards", nargs="+", required=True, type=Path, help="all of them")
    parser.add_argument("--output", required=True, type=Path)
    args = parse_args(parser)
    claim(args.output)

    write_text(args.output, export_index(args.folder, sorted(map(shard_name, args.shards))))


if __name__ == "__main__":
    start_job(main)
