"""Write SHA256SUMS of a model's folder; what the merge jobs hashed is not read again."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import write_text
    from shardmerge.package.index import checksums, load_records
    from shardmerge.run.cli import claim
    from shardmerge.run.inputlists import parse_args

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", nargs="+", required=True, type=Path, help="files to hash")
    parser.add_argument("--records", nargs="+", required=True, type=Path, help="of the shards")
    parser.add_argument("--output", required=True, type=Path, help="in the model's folder")
    args = parse_args(parser)
    claim(args.output)

    write_text(args.output, checksums(args.output.parent, args.files, load_records(args.records)))


if __name__ == "__main__":
    start_job(main)
