"""Write what the installed transformers knows of layouts of checkpoints: data, and its page."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_text
from shardmerge.compose.architecture.layouts import LAYOUTS_FILE
from shardmerge.compose.architecture.text_part import TEXT_MODELS_FILE
from shardmerge.run.cli import run
from tools.layouts.page import PAGE, with_table
from tools.layouts.tables import layouts_text
from tools.layouts.text_models import text_models_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=LAYOUTS_FILE, help="where to write")
    parser.add_argument("--text-models", type=Path, default=TEXT_MODELS_FILE, help="the same")
    parser.add_argument("--page", type=Path, default=PAGE, help="whose table to renew")
    args = parser.parse_args()
    text = layouts_text()
    write_text(args.output, text)
    write_text(args.text_models, text_models_text())
    write_text(args.page, with_table(args.page.read_text(encoding="utf-8"), text))


if __name__ == "__main__":
    run(main)
