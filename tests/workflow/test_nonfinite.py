"""`allow_nonfinite` counts at once, both ways, and what is fine is not made again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.workflow import BASE, FINETUNED, Project

pytestmark = pytest.mark.slow

#: The first layer overflows float16; the second is in another shard.
RECIPE = f"""\
name: out
merge_method: linear
slices:
  - sources:
      - {{model: {BASE}, layer_range: [0, 1], parameters: {{weight: 1.0e+7}}}}
      - {{model: {FINETUNED}, layer_range: [0, 1], parameters: {{weight: 1}}}}
  - sources:
      - {{model: {BASE}, layer_range: [1, 2], parameters: {{weight: 0.5}}}}
      - {{model: {FINETUNED}, layer_range: [1, 2], parameters: {{weight: 0.5}}}}
parameters: {{normalize: false}}
dtype: float16
"""
GOAL = "results/out/verify.json"


def test_both_ways(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project", RECIPE, layers=2)
    done = project.run(GOAL, "--keep-going")
    logs = sorted((project.folder / "logs/merge_shard/out").glob("*.log"))
    assert done.returncode == 1
    assert any("allow_nonfinite: true" in log.read_text() for log in logs)
    fine = set(project.shards("out"))
    assert fine, "one shard is as it must be"
    times = {n: (project.folder / "results/out/model" / n).stat().st_mtime_ns for n in fine}

    project.configure(allow_nonfinite=True)
    project.build(GOAL)
    assert set(project.shards("out")) > fine
    again = {n: (project.folder / "results/out/model" / n).stat().st_mtime_ns for n in fine}
    assert again == times

    project.configure(allow_nonfinite=False)
    done = project.run(GOAL)
    assert done.returncode == 1
    assert re.search("infinite or NaN", (project.folder / "logs/verify_model/out.log").read_text())
