"""Tell what a recipe makes: for every layer and module, which source contributes how much.

No weights are read. Tensor names come from --sources, from the recipe's lock, or from a well-known
architecture where there is neither.
"""

from __future__ import annotations

import argparse
import sys

from shardmerge.cli import run
from shardmerge.errors import UserError
from shardmerge.report.explain import explain
from shardmerge.report.explain_view import explanation_text
from shardmerge.report.terminal import Terminal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="mergekit YAML")
    parser.add_argument(
        "--sources", nargs="*", default=[], metavar="KEY=FOLDER", help="local folders of models"
    )
    parser.add_argument("--layers", type=int, help="number of layers to assume")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw the coefficients as well")
    args = parser.parse_args()

    if args.layers is not None and args.layers < 1:
        raise UserError("--layers must be at least 1")
    explanation = explain(args.recipe, _folders(args.sources), args.layers)
    sys.stdout.write(explanation_text(explanation, Terminal.of(sys.stdout)))
    if args.plot:
        from shardmerge.report.plots import draw_coefficients

        for name, found in explanation.models.items():
            path = args.plot
            if len(explanation.models) > 1:
                path = f"{path.removesuffix('.svg')}-{name}.svg"
            draw_coefficients(name, found, explanation.sources, path)


def _folders(pairs: list[str]) -> dict[str, str]:
    folders = {}
    for pair in pairs:
        key, sign, folder = pair.partition("=")
        if not (key and sign and folder):
            raise UserError(f"{pair!r} is not KEY=FOLDER", "--sources")
        folders[key] = folder
    return folders


if __name__ == "__main__":
    run(main)
