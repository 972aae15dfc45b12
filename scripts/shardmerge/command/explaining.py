"""What recipes make, told in words: for every layer and module, which source contributes how much.

No weights are read, and no Snakemake runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.base.findings import CHECKS
from shardmerge.run.cli import show

if TYPE_CHECKING:
    from shardmerge.report.explain import Explanation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what an explanation takes."""
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="mergekit YAML")
    parser.add_argument(
        "--sources", nargs="*", default=[], metavar="KEY=FOLDER", help="local folders of models"
    )
    parser.add_argument("--layers", type=int, metavar="N", help="number of layers to assume")
    parser.add_argument(
        "--stages", nargs="+", default=["final"], metavar="NAME", help="documents to explain"
    )
    parser.add_argument(
        "--norm-merge",
        nargs="*",
        default=[],
        metavar="geometric|NAME=geometric",
        help="as in the configuration",
    )
    parser.add_argument(
        "--silence",
        nargs="*",
        default=[],
        metavar="CHECK",
        choices=CHECKS,
        help="checks to leave out",
    )
    parser.add_argument("--plot", metavar="FILE.svg", help="draw the coefficients as well")


def explain_recipes(args: argparse.Namespace) -> None:
    """Print the explanation of recipes.

    Args:
        args: As parsed.

    Raises:
        UserError: If an option or a recipe is wrong.
    """
    from shardmerge.report.explain import explain
    from shardmerge.report.explain_view import explanation_text

    if args.layers is not None and args.layers < 1:
        raise UserError("--layers must be at least 1")
    norms = args.norm_merge[0] if args.norm_merge in (["geometric"], ["arithmetic"]) else None
    found = [
        explain(
            path,
            _pairs(args.sources, "--sources", "FOLDER") or _folders(path),
            args.layers,
            args.stages,
            norms or _pairs(args.norm_merge, "--norm-merge", "geometric"),
            args.silence,
        )
        for path in args.recipes
    ]
    show(lambda terminal: "\n".join(explanation_text(one, terminal) for one in found))
    if args.plot:
        _plot(found, args.plot)


def _folders(path: str) -> dict[str, str]:
    """Return the folders and files that a recipe names, if it has no lock that tells more."""
    from shardmerge.recipe.recipe import load_recipe
    from shardmerge.sources.sources import lock_path

    if lock_path(path).exists():
        return {}
    recipe = load_recipe(path)
    named = {r.model: str(Path(r.path).expanduser()) for r in (*recipe.sources, *recipe.adapters)}
    return {model: folder for model, folder in named.items() if Path(folder).exists()}


def _plot(explanations: Sequence[Explanation], path: str) -> None:
    """Draw the heatmap of each model, to a file of its own where there are several."""
    from shardmerge.report.plots import draw_coefficients

    models = [(name, m, one.sources) for one in explanations for name, m in one.models.items()]
    for name, found, sources in models:
        own = path if len(models) == 1 else f"{path.removesuffix('.svg')}-{name}.svg"
        draw_coefficients(name, found, sources, own)


def _pairs(items: Sequence[str], option: str, what: str) -> dict[str, str]:
    pairs = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not (key and sign and value):
            raise UserError(f"{item!r} is not NAME={what}", option)
        pairs[key] = value
    return pairs
