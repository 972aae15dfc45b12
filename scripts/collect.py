"""Put published repositories into a collection of the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import load_json, write_json
from shardmerge.package.collection import collect_repositories
from shardmerge.run import cli
from shardmerge.run.inputlists import parse_args


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--title", required=True, help="of the collection, or its slug")
    parser.add_argument("--receipts", nargs="+", required=True, type=Path, help="from publish.py")
    parser.add_argument("--public", action="store_true", help="a new one is for all to see")
    parser.add_argument("--output", type=Path, required=True, help="receipt, JSON")
    args = parse_args(parser)
    cli.claim(args.output)
    repositories = [str(load_json(path)["repository"]) for path in args.receipts]
    made = collect_repositories(args.title, repositories, private=not args.public, progress=cli.say)
    print(made.url)
    told = {"url": made.url, "slug": made.slug, "repositories": list(made.repositories)}
    write_json(args.output, told)


if __name__ == "__main__":
    cli.run(main)
