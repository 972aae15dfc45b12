"""Write what a LoRA adapter leaves out of its model: a page, a table, two pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_text
from shardmerge.plan.adapter_description import load_adapter, load_made_modules
from shardmerge.report.adapter import adapter_page, adapter_table, draw_errors, draw_ranks
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True, help="digest of the adapter's description")
    parser.add_argument("--records", nargs="+", required=True, type=Path, help="of factor jobs")
    parser.add_argument("--page", required=True, help="HTML file")
    parser.add_argument("--table", required=True, help="TSV file")
    parser.add_argument("--errors", required=True, help="SVG file")
    parser.add_argument("--ranks", required=True, help="SVG file")
    args = parse_args(parser)
    claim(args.page, args.table, args.errors, args.ranks)

    description = load_adapter(args.adapter)
    made = load_made_modules(description, args.records)
    write_text(args.page, adapter_page(description, made))
    write_text(args.table, adapter_table(made))
    draw_errors(description.name, made, args.errors)
    draw_ranks(description.name, made, args.ranks)


if __name__ == "__main__":
    run(main)
