"""Say what a plan costs on clusters of several sizes, with and without grouping of jobs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shardmerge.base.markdown import table
from shardmerge.plan.plan import read_plan
from shardmerge.run.cli import run
from tools.simulation.cluster import Grouping, Site, simulate, submissions

GROUPINGS = {
    "none": Grouping(),
    "profile": Grouping(checks=4, rest=True),
    "merges by 4": Grouping(merges=4, checks=4, rest=True),
}
HEAD = ["nodes", "grouping", "submissions", "GB on the busiest node", "shards there", "all done",
        "nodes idle until then"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, type=Path, help="the plan's JSON file")
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 8, 29])
    parser.add_argument("--node-mb-per-second", type=float, default=500, metavar="MB")
    parser.add_argument("--shared-mb-per-second", type=float, default=float("inf"), metavar="MB")
    parser.add_argument("--start", type=float, default=Site.start, help="seconds of a job's start")
    parser.add_argument("--queue", type=float, default=0, help="seconds that a submission waits")
    args = parser.parse_args()

    plan = read_plan(args.plan)
    rows = []
    for nodes in args.nodes:
        site = Site(
            nodes,
            node_rate=args.node_mb_per_second * 1e6,
            shared_rate=args.shared_mb_per_second * 1e6,
            start=args.start,
            queue=args.queue,
        )
        for name, grouping in GROUPINGS.items():
            found = simulate(submissions(plan, grouping), site)
            rows.append(
                [
                    *(str(nodes), name, str(found.submissions), f"{found.most_moved / 1e9:.1f}"),
                    *(_time(found.merged), _time(found.seconds), f"{found.idle:.0%}"),
                ]
            )
    sys.stdout.write(table(HEAD, rows))


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    run(main)
