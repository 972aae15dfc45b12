"""Draw how a search came to its best trial."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import load_json
from shardmerge.report.convergence import draw_convergence
from shardmerge.run.cli import claim, run
from shardmerge.sweep.tables import load_points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True, help="table.json of the search")
    parser.add_argument("--trials", type=Path, required=True, help="trials.json of the search")
    parser.add_argument("--output", type=Path, required=True, help="what to draw")
    args = parser.parse_args()
    claim(args.output)
    rows = load_json(args.table)["trials"]
    excluded = {row["trial"] for row in rows if not row["fulfils"]}
    draw_convergence(load_points(args.trials), excluded, args.output)


if __name__ == "__main__":
    run(main)
