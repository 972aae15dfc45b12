"""A run in a fork is what a run that Python starts for itself is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from helpers import forked_runs
from helpers.workflow import Project, environment

PROBE = """\
import os, sys
sys.stderr.write(f"probe: {os.getcwd()} {sys.path[0]} {sys.argv}\\n")
for item in sorted(os.environ.items()): print(*item, file=sys.stderr)
print("hash:", hash("x"), flush=True)
rule all:
    params: sys.stdin.read()
"""


def said(text: str) -> list[str]:
    """Return the lines of a run that neither time nor the hash of a text is in."""
    lines = [line for line in text.splitlines() if not line.startswith("hash: ")]
    return [line for line in lines if not re.search(r"\d\d:\d\d:\d\d|Date:|Workflow ID", line)]


@pytest.fixture
def probe(tmp_path: Path) -> Project:
    """A workflow that tells in which process it is read."""
    (tmp_path / "Snakefile").write_text(PROBE)
    (tmp_path / "cfg.yaml").write_text("{}")
    return Project(tmp_path)


def command(project: Project, *arguments: str) -> list[str]:
    words = project.command(*arguments)
    words[words.index("-s") + 1] = "Snakefile"
    return words


def test_same_words_folder_and_environment(probe: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command(probe, "-n")
    done = subprocess.run(
        words,
        cwd=probe.folder,
        env=environment({"MARK": "mine"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    monkeypatch.setattr(probe, "command", lambda *_, **__: words)
    forked = probe.run(env={"MARK": "mine"})
    assert "probe: " in forked.stdout and "MARK mine" in forked.stdout
    assert said(forked.stdout) == said(done.stdout)
    assert forked.returncode == done.returncode == 0


def test_hashes_differ_from_run_to_run(probe: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command(probe, "-n")
    monkeypatch.setattr(probe, "command", lambda *_, **__: words)
    seen = [re.search(r"hash: (\S+)", probe.run().stdout)[1] for _ in range(2)]
    assert seen[0] != seen[1]


def test_status_and_limit_of_time(probe: Project) -> None:
    (probe.folder / "Snakefile").write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(subprocess.TimeoutExpired):
        forked_runs.run(command(probe)[3:], probe.folder, environment(), probe.folder / "said", 0.2)

    def status(option: str) -> int:
        return forked_runs.run([option], probe.folder, environment(), probe.folder / "said", 60)

    assert (status("--version"), status("--nonsense")) == (0, 2)
