"""Write an index that tells which shard holds which tensor."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import write_text
    from shardmerge.base.weightfolders import COMPONENT_INDEX
    from shardmerge.package.index import index_text, make_index
    from shardmerge.plan.description import load_description
    from shardmerge.run.cli import claim

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--stem", required=True, help="what it is called within the model's folder")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    claim(args.output)

    index = make_index(load_description(args.build), f"{args.stem}{COMPONENT_INDEX}")
    write_text(args.output, index_text(index))


if __name__ == "__main__":
    start_job(main)
