"""`--logger shardmerge`: plain lines where there is no terminal, the reason of a failure last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.workflow import REPOSITORY, environment

SNAKEFILE = """
rule all:
    input: "r/a/model/SHA256SUMS"
rule write_checksums:
    input: "v.json"
    output: "r/a/model/SHA256SUMS"
    log: "sums.log"
    shell: "touch {output}"
rule verify_model:
    output: "v.json"
    log: "verify.log"
    shell: "echo noise > {log}; echo 'error: a shard is damaged' >> {log}; WHAT {output}"
"""


def run(folder: Any, what: Any, *arguments: Any) -> Any:
    (folder / "Snakefile").write_text(SNAKEFILE.replace("WHAT", what))
    plugins = os.pathsep.join([str(REPOSITORY / "plugins"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--logger", "shardmerge", *arguments],
        cwd=folder,
        env=environment({"PYTHONPATH": plugins}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
class TestDisplay:
    def test_a_run_ends_with_where_its_results_lie(self, tmp_path: Path) -> None:
        done = run(tmp_path, "touch")
        assert done.returncode == 0, done.stdout
        lines = done.stdout.splitlines()
        assert lines[-4].startswith("[1/3] verified")
        assert lines[-3:-1] == ["[2/3] write checksums", "model: r/a/model"]
        assert lines[-1].startswith("done: 3 jobs in")
        again = run(tmp_path, "touch")
        assert "Nothing to be done" in again.stdout

    def test_a_failed_run_ends_with_the_reason(self, tmp_path: Path) -> None:
        done = run(tmp_path, "false")
        assert done.returncode == 1
        assert done.stdout.splitlines()[-2:] == [
            "error: verifying: a shard is damaged",
            "  all of it: verify.log",
        ]
        assert done.stdout.count("a shard is damaged") == 1

    def test_a_dry_run_is_as_always(self, tmp_path: Path) -> None:
        done = run(tmp_path, "touch", "-n")
        assert done.returncode == 0
        assert "rule verify_model:" in done.stdout
        assert "This was a dry-run" in done.stdout
