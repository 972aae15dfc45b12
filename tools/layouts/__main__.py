"""Write what the installed transformers knows of layouts of checkpoints: data and a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_text
from shardmerge.compose.architecture.layouts import LAYOUTS_FILE
from shardmerge.run.cli import run
from tools.layouts.tables import layouts_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=LAYOUTS_FILE, help="where to write")
    args = parser.parse_args()
    write_text(args.output, layouts_text())


if __name__ == "__main__":
    run(main)
