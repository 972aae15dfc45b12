"""The command line: its words, and what each of them starts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from shardmerge import __version__
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.command import explaining, workflow
from shardmerge.run.cli import run

_SHELLS = ("bash", "zsh", "tcsh")
_EPILOG = (
    "Words after `--` go to Snakemake as they are: shardmerge merge recipe.yaml -- --forceall. "
    "The command is a door to the workflow's targets; plain `snakemake` does the same."
)


def main() -> None:
    """Run the command that this process was started with."""
    run(lambda: _start(sys.argv[1:]))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="shardmerge",
        description="Builds merged language models from mergekit recipes, one shard at a time.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"shardmerge {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, target in workflow.TARGETS.items():
        workflow.add_arguments(_added(commands, name, target.help))
    explaining.add_arguments(_added(commands, "explain", "tell what a recipe does; no weights"))
    about = "check a finished model, adapter or export: checksums, provenance, signature"
    verify = _added(commands, "verify", about)
    verify.add_argument("folder", metavar="DIR", help="with SHA256SUMS, or a result's folder")
    verify.add_argument("--key", metavar="PEM", help="public key that must have signed it")
    verify.add_argument("--identity", help="account of sigstore that must have signed it")
    verify.add_argument("--issuer", help="who vouches for the account, such as a mail provider")
    _add_init(_added(commands, "init", "write a recipe and a configuration for two models"))
    completion = _added(commands, "completion", "print what completes the command in a shell")
    completion.add_argument("shell", choices=_SHELLS)
    return parser


def _added(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs=2, metavar="MODEL", help="folder, or owner/name of the Hub")
    parser.add_argument("--base", metavar="MODEL", help="what both are made from")
    parser.add_argument("--method", help="merge method (ties with a base, else slerp)")
    parser.add_argument("--name", help="of the merged model")
    parser.add_argument("--out", metavar="DIR", default=".", help="where to write (this folder)")


def _start(words: Sequence[str]) -> None:
    own, further = _split(words)
    parser = make_parser()
    if not own:
        parser.print_help()
        return
    _check_command(parser, own)
    args = parser.parse_args(own)
    if args.command in ("search", "sweep"):
        from shardmerge.command.searching import search

        search(args, further)
    elif args.command in workflow.TARGETS:
        workflow.start(args, further)
    elif further:
        raise UserError(f"{args.command} runs no Snakemake, which words after `--` are for")
    elif args.command == "explain":
        explaining.explain_recipes(args)
    elif args.command == "verify":
        from shardmerge.command.verifying import signer_of, verify

        verify(args.folder, signer_of(args.key, args.identity, args.issuer))
    elif args.command == "init":
        from shardmerge.command.starting import write_project

        write_project(args)
    else:
        print(_completion(parser, args.shell))


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before `--` and those after it."""
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _check_command(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Guess at a misspelt command; argparse would only list all of them."""
    known = _commands(parser)
    if words and not words[0].startswith("-") and words[0] not in known:
        raise UserError(f"unknown command {words[0]!r}", hint=did_you_mean(words[0], known))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return found.choices


def _completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a shell's completion, all of whose words are in the text: TAB starts no Python."""
    try:
        import shtab
    except ImportError:
        raise UserError("needs the package shtab", hint="Run `make env`.") from None

    for command in _commands(parser).values():
        for action in command._actions:
            if action.metavar in ("RECIPE", "FILE", "FILE.svg"):
                action.complete = shtab.FILE
            elif action.metavar in ("DIR", "MODEL"):
                action.complete = shtab.DIRECTORY
    return shtab.complete(parser, shell)
