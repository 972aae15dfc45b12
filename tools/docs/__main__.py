"""Write the documentation that is made from the code."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_text
from shardmerge.run.cli import run
from tools.docs.config import with_tables
from tools.docs.methods import methods_markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="where to write")
    parser.add_argument(
        "--config", type=Path, default=Path("config/README.md"), help="whose table to renew"
    )
    args = parser.parse_args()
    write_text(args.folder / "methods.md", methods_markdown())
    manual = args.config.read_text(encoding="utf-8")
    write_text(args.config, with_tables(manual))


if __name__ == "__main__":
    run(main)
