"""Check a merged model as a whole and write the record that says so."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.cli import run
from shardmerge.files import load_json, write_json
from shardmerge.planning import description_path
from shardmerge.verify import check_files, check_loading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--model", required=True, type=Path, help="the model's folder")
    parser.add_argument("--checks", nargs="+", required=True, type=Path)
    parser.add_argument("--records", nargs="+", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--load-limit-gb", type=float, default=8)
    args = parser.parse_args()
    description = load_json(description_path(args.build))
    result = check_files(description, args.model, args.records, args.checks)
    result |= check_loading(args.model, description, int(args.load_limit_gb * 1e9))
    write_json(args.output, result | {"passed": True})


if __name__ == "__main__":
    run(main)
