"""What Snakemake imports to read the workflow, which every command and cluster job pays for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[3]
HEAVY = {"numpy", "torch", "llvmlite", "scipy", "optuna", "matplotlib", "transformers", "lm_eval"}


def test_rules_import_nothing_heavy() -> None:
    lines = [
        line
        for file in sorted((REPO / "rules").glob("*.smk"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.match(r"(from|import) shardmerge", line)
    ]
    assert len(lines) > 20
    code = "\n".join(["import sys", *lines, f"print(sorted({HEAVY!r} & set(sys.modules)))"])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(REPO / "scripts"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
