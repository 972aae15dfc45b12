"""Plot what probes of models found: divergences from others, needles by length and depth."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.jsontext import parse_json
from shardmerge.benchmark.samples import samples_path
from shardmerge.report.probe_plots import draw_divergences, draw_needles, needle_shares
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    """Read the command line, draw one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", help="JSON of benchmark_table.py: draw divergences")
    parser.add_argument("--results", nargs="+", default=[], help="needle.json files: draw needles")
    parser.add_argument("--output", required=True, help="SVG file")
    parser.add_argument("--merged", help="the model that stands out")
    args = parse_args(parser)
    claim(args.output)
    if args.table:
        draw_divergences(load_json(args.table), args.output, args.merged)
        return
    models = {load_json(path)["model_name"]: _shares(samples_path(path)) for path in args.results}
    draw_needles(models, args.output, args.merged)


def _shares(path: Path) -> dict[tuple[int, float], tuple[int, int]]:
    try:
        with open(path, encoding="utf-8") as lines:
            return needle_shares(parse_json(line, str(path)) for line in lines)
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError("has no samples of needles", str(path)) from None


if __name__ == "__main__":
    run(main)
