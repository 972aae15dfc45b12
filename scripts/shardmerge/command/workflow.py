"""Commands that are targets of the workflow: each becomes one run of Snakemake, which is told."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.files import read_text
from shardmerge.run.cli import say

HOME = Path(__file__).parents[3]
#: A configuration in the working folder that is taken where none is named.
_CONFIG = "config.yaml"
#: Snakemake finds this one by itself.
_DEFAULT = "config/config.yaml"
_HAS_RECIPES = re.compile(r"""^["']?recipes["']?\s*:""", re.MULTILINE)
#: What Snakemake need not say of itself where people wait for jobs, and where they want an answer.
_BRIEF = ("rules", "host", "progress", "reason")
_SILENT = ("all",)


@dataclass(frozen=True)
class Target:
    """What a command runs.

    Args:
        name: The workflow's target.
        help: A few words on it.
        quiet: What Snakemake leaves out.
    """

    name: str
    help: str
    quiet: tuple[str, ...] = _BRIEF


TARGETS = {
    "merge": Target("models", "build the models, verified"),
    "plan": Target("plan", "print what would be built, read, fetched and written", _SILENT),
    "lock": Target("lock", "lock all sources anew and print what moved", _SILENT),
    "bench": Target("benchmarks", "build the models and their benchmark tables"),
    "report": Target("report", "build the models, their plots and tables"),
    "publish": Target("publish", "upload verified models to `publish.repository`"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all of these commands take."""
    parser.add_argument(
        "files",
        nargs="*",
        metavar="RECIPE",
        help=f"recipes, or a configuration (a file with the key `recipes`); else {_CONFIG} or "
        f"{_DEFAULT} of this folder",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the results (results)")
    parser.add_argument("--cores", metavar="N", default="all", help="cores to use (all)")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the configuration; may be given several times",
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only list what would be done")


def start(args: argparse.Namespace, further: Sequence[str]) -> None:
    """Become Snakemake, after telling its command line.

    Args:
        args: As parsed.
        further: Words for Snakemake as they are.

    Raises:
        UserError: If it is not clear what to build, or there is no workflow to run.
    """
    words = command(args, further)
    if not (HOME / "Snakefile").is_file():
        raise UserError(
            "is installed without its workflow",
            str(Path(__file__).parents[1]),
            "Clone the repository and run `make env` in it.",
        )
    from importlib.util import find_spec

    if find_spec("snakemake") is None:
        raise UserError("Snakemake is not installed here", hint="Run `make env`.")
    say(shlex.join(["snakemake", *words]))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *words])


def command(args: argparse.Namespace, further: Sequence[str]) -> list[str]:
    """Return what Snakemake is started with.

    Args:
        args: As parsed.
        further: Words for it as they are.

    Raises:
        UserError: If it is not clear what to build.
    """
    if "--config" in further or "--configfile" in further:
        raise UserError(
            "`--config` and `--configfile` after `--` would put aside what the command gives",
            hint="Give the configuration as a file before `--`, and single keys by `--config`.",
        )
    target = TARGETS[args.command]
    configs, recipes = _sorted(args.files)
    keys = [f"recipes={_quoted(recipes)}"] if recipes else []
    keys += [f"results={_quoted(args.out)}"] if args.out else []
    dry = ["--dry-run"] if args.dry_run else []
    quiet = [] if args.dry_run else ["--quiet", *target.quiet]
    words = ["--snakefile", str(HOME / "Snakefile"), "--cores", args.cores, *dry, *quiet]
    # further targets go before the options that take all words which follow
    words = [target.name, *further, *words]
    words += ["--configfile", *configs] if configs else []
    words += ["--config", *keys, *args.config] if keys or args.config else []
    return words


def _sorted(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return configurations and recipes among files.

    Raises:
        UserError: If one cannot be read, or there is nothing to build.
    """
    configs = [file for file in files if is_configuration(file)]
    recipes = [file for file in files if file not in configs]
    if not files and Path(_CONFIG).is_file() and is_configuration(_CONFIG):
        configs = [_CONFIG]
    if not (configs or recipes or Path(_DEFAULT).is_file()):
        raise UserError(
            "names no recipe, and this folder has no configuration",
            "the command",
            "Write `shardmerge merge RECIPE.yaml`, or begin with `shardmerge init MODEL MODEL`.",
        )
    return configs, recipes


def is_configuration(file: str) -> bool:
    """Return whether a file is a configuration and not a recipe: it has the key `recipes`.

    Raises:
        UserError: If it cannot be read.
    """
    return bool(_HAS_RECIPES.search(read_text(file)))


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
