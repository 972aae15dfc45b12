"""Plot benchmark results with their standard errors."""

from __future__ import annotations

import argparse

from shardmerge.base.files import load_json
from shardmerge.report.benchmarks import draw_benchmarks
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", required=True, help="JSON of benchmark_table.py")
    parser.add_argument("--output", required=True, help="SVG file")
    parser.add_argument("--merged", help="the model whose bars stand out")
    args = parser.parse_args()
    claim(args.output)
    draw_benchmarks(load_json(args.table), args.output, args.merged)


if __name__ == "__main__":
    run(main)
