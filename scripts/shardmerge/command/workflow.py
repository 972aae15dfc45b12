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
_HAS_RECIPES = re.compile(r"""^["']?(recipes|sweep)["']?\s*:""", re.MULTILINE)
#: Folder of the display of a run's progress.
_PLUGINS = HOME / "plugins"
#: What the display need not show, and what Snakemake need not say where people want an answer.
_BRIEF = ("host",)
_SILENT = ("all",)


@dataclass(frozen=True)
class Target:
    """What a command runs.

    Args:
        name: The workflow's target.
        help: A few words on it.
        waits: Whether people wait for jobs, which a display shows; else they want an answer.
    """

    name: str
    help: str
    waits: bool = True


TARGETS = {
    "merge": Target("models", "build the models, verified"),
    "plan": Target("plan", "print what would be built, read, fetched and written", waits=False),
    "lock": Target("lock", "lock all sources anew and print what moved", waits=False),
    "bench": Target("benchmarks", "build the models and their benchmark tables"),
    "prefetch": Target(
        "prefetch", "fetch the data sets of benchmarks for nodes without a network", waits=False
    ),
    "sweep": Target("sweep", "try the recipes of a sweep, measure and compare them"),
    "search": Target("search", "let a search try, measure and learn, generation by generation"),
    "report": Target("report", "build the models, their plots and tables"),
    "export": Target("exports", "export the models to the forms under `exports`, such as GGUF"),
    "preview": Target("preview", "list what `publish` would upload, file by file"),
    "publish": Target("publish", "upload what is verified to `publish.repository`"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all of these commands take."""
    parser.add_argument(
        "files",
        nargs="*",
        metavar="RECIPE",
        help=f"recipes, or a configuration (a file with the key `recipes` or `sweep`); else "
        f"{_CONFIG} or {_DEFAULT} of this folder; `search` takes documents of mergekit-evolve too",
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
    found = ready(words)
    sys.stdout.flush()
    python = [sys.executable, "-m", "snakemake"]
    os.execve(sys.executable, [*python, *words], os.environ | found)


def ready(words: Sequence[str]) -> dict[str, str]:
    """Make sure that Snakemake can run, and tell its command line.

    Args:
        words: Of the command line.

    Returns:
        Variables of the environment that it needs.

    Raises:
        UserError: If there is no workflow to run.
    """
    if not (HOME / "Snakefile").is_file():
        raise UserError(
            "is installed without its workflow",
            str(Path(__file__).parents[1]),
            "Clone the repository and run `make env` in it.",
        )
    from importlib.util import find_spec

    if find_spec("snakemake") is None:
        raise UserError("Snakemake is not installed here", hint="Run `make env`.")
    found = {"PYTHONPATH": _search_path()} if "--logger" in words else {}
    shown = [f"{name}={shlex.quote(value)}" for name, value in found.items()]
    say(" ".join([*shown, shlex.join(["snakemake", *words])]))
    return found


def _search_path() -> str:
    """Return where Python finds the display, and what else was to be found."""
    return os.pathsep.join(filter(None, [str(_PLUGINS), os.environ.get("PYTHONPATH")]))


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
    files = args.files
    if args.command == "search":
        from shardmerge.command.evolving import is_genome, keep_configuration

        # what a document of mergekit-evolve means; other configurations go over it
        files = sorted(files, key=lambda file: not is_genome(file))
        files = [keep_configuration(file) if is_genome(file) else file for file in files]
    configs, recipes = _sorted(files)
    keys = [f"recipes={_quoted(recipes)}"] if recipes else []
    keys += [f"results={_quoted(args.out)}"] if args.out else []
    dry = ["--dry-run"] if args.dry_run else []
    words = ["--snakefile", str(HOME / "Snakefile"), "--cores", args.cores, *dry]
    words += [] if args.dry_run else _screen(target, further)
    # further targets go before the options that take all words which follow
    words = [target.name, *further, *words]
    words += ["--configfile", *configs] if configs else []
    words += ["--config", *keys, *args.config] if keys or args.config else []
    return words


def _screen(target: Target, further: Sequence[str]) -> list[str]:
    """Return the options that say what is shown; a logger that is asked for is the only one."""
    if not target.waits:
        return ["--quiet", *_SILENT]
    logger = [] if "--logger" in further else ["--logger", "shardmerge"]
    return [*logger, "--quiet", *_BRIEF]


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
    """Return whether a file is a configuration: it has the key `recipes` or `sweep`.

    Raises:
        UserError: If it cannot be read.
    """
    return bool(_HAS_RECIPES.search(read_text(file)))


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
