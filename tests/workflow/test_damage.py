"""What is damaged on disk is found, named, and made anew as the message says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.workflow import NAME, Project

CHECK_AGAIN = ("--forcerun", "check_shard", "check_delta", "--", "models")


def flip_last_bit(path: Path) -> None:
    """Damage a file as a bad disk does: its size and times stay."""
    data, before = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def logged(project: Project, rule: str) -> str:
    return "".join(p.read_text() for p in (project.folder / "logs" / rule).rglob("*.log"))


@pytest.mark.slow
def test_found_and_made_anew(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project")
    project.configure(deltas="store")
    project.build("models")
    good, results = project.shards(), project.folder / "results"
    shard = sorted((results / NAME / "model").glob("*.safetensors"))[1]
    record = results / NAME / "records" / f"{shard.stem}.json"
    vector = sorted((results / "deltas").rglob("*.safetensors"))[0]

    for damaged, rule in ((shard, "check_shard"), (vector, "check_delta")):
        flip_last_bit(damaged)
        assert project.run(*CHECK_AGAIN).returncode == 1
        assert str(damaged.relative_to(project.folder)) in logged(project, rule)
        damaged.unlink()
        project.build("models")
        assert damaged.exists() and project.shards() == good

    record.write_text("[")
    assert project.run("models").returncode == 1
    assert f"Delete '{record.relative_to(project.folder)}'" in logged(project, "check_shard")
    record.unlink()
    project.build("models")
    assert project.shards() == good and project.pending("models") == []
