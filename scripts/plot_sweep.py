"""Draw the trials of a sweep, and write the page on which to explore them."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_text
from shardmerge.report.trial_curves import draw_curves
from shardmerge.report.trial_grids import draw_parallel, draw_trial_grid
from shardmerge.report.trial_pareto import draw_pareto
from shardmerge.report.trials_page import trials_page
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args
from shardmerge.sweep.tables import load_points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=Path, required=True, help="trials.json of the sweep")
    parser.add_argument("--output", nargs="+", type=Path, required=True, help="what to draw")
    args = parse_args(parser)
    claim(*args.output)
    points = load_points(args.trials)
    variables = list(points.variables())
    for output in args.output:
        match output.stem:
            case "trials":
                write_text(output, trials_page(points))
            case "pareto":
                draw_pareto(points, output)
            case "grid":
                draw_trial_grid(points, (variables[0], variables[1]), output)
            case "parallel":
                draw_parallel(points, output)
            case curve:
                draw_curves(points, curve.removeprefix("over-"), output)


if __name__ == "__main__":
    run(main)
