"""Fetch one file of a pinned source, from the Hub as a rule: checked against the lock."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from shardmerge.base import files
from shardmerge.base.identities import LockedFile
from shardmerge.run import cli
from shardmerge.sources.store import Origin
from shardmerge.sources.stores import remote_store


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True, help="repository, OWNER/NAME on the Hub")
    parser.add_argument("--commit", required=True, help="40-hex commit")
    parser.add_argument("--name", required=True, help="path in the repository")
    parser.add_argument("--size", type=int, required=True, help="bytes")
    content = parser.add_mutually_exclusive_group(required=True)
    content.add_argument("--sha256", help="of the content")
    content.add_argument("--git-oid", help="git blob id, which the Hub has for small files")
    parser.add_argument("--output", type=Path, required=True, help="where it goes")
    parser.add_argument("--record", type=Path, help="write how it came to this JSON file")
    parser.add_argument("--retries", type=int, default=8, help="failures in a row without a byte")
    parser.add_argument(
        "--cache",
        choices=("link", "copy", "off"),
        default="link",
        help="what to do with a file that the Hugging Face cache holds (default: %(default)s)",
    )
    args = parser.parse_args()
    record = remote_store(args.repo).fetch(
        Origin(args.repo, commit=args.commit),
        args.name,
        LockedFile(args.size, sha256=args.sha256, git_oid=args.git_oid),
        args.output,
        retries=args.retries,
        cache_use=args.cache,
        progress=cli.say,
    )
    if args.record:
        files.write_json(args.record, dataclasses.asdict(record))


if __name__ == "__main__":
    cli.run(main)
