"""What `make` runs is what it says: Snakemake takes each word of its command lines as meant."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from snakemake.cli import get_argument_parser

REPO = Path(__file__).parents[3]
_INSTALLED = ".venv/.installed"


def command_lines(target: str) -> list[list[str]]:
    """Return the words of each run of Snakemake that a target has, less what stands before."""
    done = subprocess.run(
        ["make", "-n", "-o", _INSTALLED, target],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [shlex.split(line) for line in done.stdout.splitlines() if "snakemake " in line]
    return [words[words.index("snakemake") + 1 :] for words in lines]


@pytest.mark.parametrize(
    ("target", "asked"), [("demo", [{"all"}, set()]), ("demo-sweep", [{"sweep"}])]
)
def test_targets_are_targets(
    target: str, asked: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option with many values would take a target behind it for one of them."""
    monkeypatch.syspath_prepend(REPO / "plugins")
    found = [get_argument_parser().parse_args(words) for words in command_lines(target)]
    assert [set(one.targets) for one in found] == asked


def test_the_search_is_a_command_that_there_is() -> None:
    from shardmerge.command.door import make_parser

    (words,) = [
        shlex.split(line)
        for line in subprocess.run(
            ["make", "-n", "-o", _INSTALLED, "demo-search"],
            cwd=REPO, capture_output=True, text=True, check=True,
        ).stdout.splitlines()
        if "-m shardmerge" in line
    ]  # fmt: skip
    args = make_parser().parse_args(words[words.index("shardmerge") + 1 :])
    assert (args.command, args.files) == ("search", ["config/search.yaml"])
