"""Needles in texts as long as a merged model's configuration declares, through the workflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from helpers.workflow import HALF_WAY, REPOSITORY, Project


@pytest.mark.slow
def test_needles_at_the_declared_context(tmp_path: Path) -> None:
    """The recipient declares 2048 tokens, the fine-tune 256, the merge what the recipient does."""
    demo = REPOSITORY / "config" / "tasks" / "demo"
    probes = {
        "text": str(demo / "text.txt"), "measure": ["needle"], "symbols": "abcdefghijkl",
        "needle": "K{secret}={secret}.", "question": "K{secret}=", "depths": [0, 0.5, 1],
        "needles": 1,
    }  # fmt: skip
    values = {
        "recipes": ["recipe.yaml"],
        "max_shard_size": "10MB",
        "silence": ["rope-blend", "norms-summed"],
        "benchmark": {"models": ["merged", "sources"], "tasks": [], "probes": probes},
        "resources": {"benchmark_threads": 1},
    }
    (tmp_path / "recipe.yaml").write_text(HALF_WAY)
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(values))
    project = Project(tmp_path)
    project.build("benchmarks", "results/made/report/needles.svg")
    config = json.loads((tmp_path / "results" / "made" / "model" / "config.json").read_text())
    assert config["max_position_embeddings"] == 2048
    table = json.loads((tmp_path / "results" / "benchmarks" / "table.json").read_text())
    lengths: dict[str, set[int]] = {}
    for cell in table["cells"]:
        if cell["part_of"]:
            lengths.setdefault(cell["model"], set()).add(int(cell["task"].removeprefix("needle_")))
            assert cell["samples"] == 3 and 0 <= cell["value"] <= 1
    assert lengths["made"] == lengths["miqu-tiny"] == {512, 1024, 2048}
    assert lengths["midnight-tiny"] == {64, 128, 256}
    assert (tmp_path / "results" / "made" / "report" / "needles.svg").is_file()
