"""Two runs on one results folder: the second is told who is there, and nothing is touched."""

from __future__ import annotations

import getpass
import socket
import subprocess
from pathlib import Path

import pytest
from heads import Held

from helpers.workflow import Project, environment

pytestmark = pytest.mark.slow

SHARD = "model-00001-of-00005"


class TestTwoRuns:
    def test_the_second_is_told(self, tmp_path: Path) -> None:
        first = Project.create(tmp_path / "first", layers=2)
        second = first.copy(tmp_path / "second")
        second.configure(results=str(first.folder / "results"))
        with Held(first, SHARD) as held:
            process = subprocess.Popen(
                first.command("--until", "merge_shard"),
                cwd=first.folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            while not held.reached():
                assert process.poll() is None, process.stdout.read()
            done = second.run("--until", "merge_shard")
            assert done.returncode != 0
            who = f"{getpass.getuser()} on {socket.gethostname()} (process {process.pid}) since 20"
            assert f"is in use: {who}" in done.stdout  # already while the Snakefile is read
            (line,) = [x for x in done.stdout.splitlines() if "is running shardmerge" in x]
            assert line.startswith(f"error: {first.folder / 'results'}: {who}")
            assert "Traceback" not in done.stdout
            assert held.reached()
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        assert len(first.shards()) == 5
        assert list(first.folder.rglob(".*.claim*")) == []
        assert second.shards() == {}
