"""Copy files, each whole or not at all."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    import shutil
    from pathlib import Path

    from shardmerge.base.files import atomic_path
    from shardmerge.run.cli import claim
    from shardmerge.run.inputlists import parse_args

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", nargs="+", required=True, type=Path, help="files to copy")
    parser.add_argument("--output", nargs="+", required=True, type=Path, help="as many names")
    args = parse_args(parser)
    claim(*args.output)
    for source, output in zip(args.source, args.output, strict=True):
        with atomic_path(output) as part:
            shutil.copyfile(source, part)


if __name__ == "__main__":
    start_job(main)
