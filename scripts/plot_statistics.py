"""Plot how task vectors agree, how far a model is from its parents, or what sparse methods keep."""

from __future__ import annotations

import argparse

from shardmerge.report.interference import load_interference
from shardmerge.report.interference_plots import PLOTS
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", required=True, choices=PLOTS)
    parser.add_argument("--statistics", required=True, help="JSON of collect_statistics.py")
    parser.add_argument("--output", required=True, help="SVG file")
    args = parser.parse_args()
    claim(args.output)
    PLOTS[args.what](load_interference(args.statistics), args.output)


if __name__ == "__main__":
    run(main)
