"""Tell what recipes make: for every layer and module, which source contributes how much.

No weights are read. Tensor names come from --sources, from the recipe's lock, or from a well-known
architecture where there is neither.
"""

from __future__ import annotations

import argparse

from shardmerge.command.explaining import add_arguments, explain_recipes
from shardmerge.run.cli import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    explain_recipes(parser.parse_args())


if __name__ == "__main__":
    run(main)
