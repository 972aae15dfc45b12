"""Write the documentation that is made from the code."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.cli import run
from shardmerge.files import write_text
from shardmerge.methods_doc import methods_markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="where to write")
    folder = parser.parse_args().folder
    write_text(folder / "methods.md", methods_markdown())


if __name__ == "__main__":
    run(main)
