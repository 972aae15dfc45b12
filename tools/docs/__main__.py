"""Write the documentation that is made from the code: tables, pages, the README's picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base import forms
from shardmerge.base.files import load_json, write_text
from shardmerge.benchmark.trials import TrialSet
from shardmerge.report.convergence import draw_convergence
from shardmerge.report.explain import explain
from shardmerge.report.plots import draw_coefficients
from shardmerge.report.trial_curves import draw_curves
from shardmerge.run.cli import run
from shardmerge.sweep.tables import load_points
from tools.docs.config import with_tables
from tools.docs.methods import methods_markdown

_HOME = Path(__file__).parents[2]
_FLAGSHIP = _HOME / "config" / "recipes" / "miquplus-midnight-70b.yaml"
#: What `make demo-sweep` measured; it writes the file as results/sweeps/tiny-sweep/trials.json.
_SWEEP = _HOME / "docs" / "sweep.json"
#: What `make demo-search` measured, of its trials.json and table.json.
_SEARCH = _HOME / "docs" / "search.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="where to write")
    parser.add_argument(
        "--config", type=Path, default=Path("config/README.md"), help="whose table to renew"
    )
    args = parser.parse_args()
    write_text(args.folder / "methods.md", methods_markdown())
    _draw_flagship(args.folder / "flagship-coefficients.svg")
    points = load_points(_SWEEP)
    draw_curves(points, "weight", args.folder / "sweep.svg")
    trials = forms.read(TrialSet, load_json(_SEARCH)["points"])
    draw_convergence(trials, args.folder / "search.svg")
    manual = args.config.read_text(encoding="utf-8")
    write_text(args.config, with_tables(manual))


def _draw_flagship(output: Path) -> None:
    """Draw the coefficients of the flagship, from the recipe alone."""
    found = explain(str(_FLAGSHIP), folders={})
    for name, model in found.models.items():
        draw_coefficients(name, model, found.sources, str(output))


if __name__ == "__main__":
    run(main)
