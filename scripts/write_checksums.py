"""Write a merged model's SHA256SUMS."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.cli import run
from shardmerge.files import write_text
from shardmerge.package import checksums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", nargs="+", required=True, type=Path)
    parser.add_argument("--records", nargs="+", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    write_text(args.output, checksums(args.files, args.records))


if __name__ == "__main__":
    run(main)
