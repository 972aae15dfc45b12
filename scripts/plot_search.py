"""Draw how a search came to its best trial."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.report.convergence import draw_convergence
from shardmerge.run.cli import claim, run
from shardmerge.sweep.tables import load_points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=Path, required=True, help="trials.json of the search")
    parser.add_argument("--output", type=Path, required=True, help="what to draw")
    args = parser.parse_args()
    claim(args.output)
    draw_convergence(load_points(args.trials), args.output)


if __name__ == "__main__":
    run(main)
