"""Write the recipe that a checkpoint was built from."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_text
from shardmerge.plan.description import load_description
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--output", required=True, type=Path, help="mergekit_config.yml to write")
    args = parser.parse_args()
    claim(args.output)

    write_text(args.output, load_description(args.build).recipe.text)


if __name__ == "__main__":
    run(main)
