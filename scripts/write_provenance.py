"""Write what a merged model was made from and with."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.cli import run
from shardmerge.files import load_json, write_json
from shardmerge.package import provenance
from shardmerge.planning import description_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--records", nargs="+", required=True, type=Path)
    parser.add_argument("--verify", required=True, type=Path)
    parser.add_argument("--files", nargs="+", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    description = load_json(description_path(args.build))
    write_json(
        args.output,
        provenance(description, args.build, args.records, args.verify, args.files),
    )


if __name__ == "__main__":
    run(main)
