"""The engine moves each byte once: what is counted by the kernel is what the plan says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.engine_cases import FILE
from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.safetensors import write_header

#: Most that may move, as a multiple of what is needed.
SLACK = 1.05
SHAPE = (4_000, 1_000)  # 8 MB
BUILD = """
import json, pathlib, sys
import shardmerge.engine.torch_lane
from shardmerge.engine import build_shard
from shardmerge.algebra.spec import ShardSpec

def counters():
    rows = pathlib.Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (row.split(": ") for row in rows)}

folder = pathlib.Path(sys.argv[1])
spec = ShardSpec.from_json(json.load(sys.stdin))
paths = {key: folder / f"{key[0]}.safetensors" for key in spec.files}
before = counters()
record = build_shard(spec, paths, folder / "out.safetensors", link="copy")
after = counters()
moved = {key: after[key] - before[key] for key in ("rchar", "wchar")}
print(json.dumps(moved | {"read": record.bytes_read, "written": record.bytes_written}))
"""


@pytest.fixture
def shard(tmp_path: Path) -> ShardSpec:
    """A shard of which one tensor is merged, one is copied, and two of the sources' are unused."""
    names = ("merged", "copied", "unused")
    for model in "qab":
        header = write_header([(name, "F16", SHAPE) for name in names], {"format": "pt"})
        (tmp_path / f"{model}.safetensors").write_bytes(header + b"\x11\x2c" * (3 * 4_000_000))

    def source(model: str, name: str) -> ex.Source:
        return ex.Source(model, FILE, name, "F16", SHAPE)

    delta = ex.Delta(source("a", "merged"), source("b", "merged"), "F16")
    merged = ex.Linear(((1.0, source("q", "merged")), (0.4, delta)))
    tensors = (
        OutputTensor("merged", "F16", SHAPE, merged),
        OutputTensor("copied", "F16", SHAPE, source("q", "copied")),
    )
    return ShardSpec(tensors, {(model, FILE): model for model in "qab"})


READ, WRITTEN = 4 * 8_000_000, 2 * 8_000_000


def build(folder: Path, spec: ShardSpec, *before: str) -> str:
    done = subprocess.run(
        [*before, sys.executable, "-c", BUILD, str(folder)],
        input=json.dumps(spec.to_json()),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestBytes:
    def test_by_the_kernels_counters(self, tmp_path: Path, shard: ShardSpec) -> None:
        moved = json.loads(build(tmp_path, shard))
        assert READ <= moved["rchar"] <= SLACK * READ
        assert WRITTEN <= moved["wchar"] <= SLACK * WRITTEN
        assert moved["read"] <= SLACK * READ
        assert moved["written"] <= SLACK * WRITTEN

    @pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
    def test_by_the_system_calls(self, tmp_path: Path, shard: ShardSpec) -> None:
        log = tmp_path / "calls"
        calls = "trace=/p?(read|write)(64|v|v2)?,copy_file_range,sendfile"
        build(tmp_path, shard, "strace", "-f", "-y", "-qq", "-o", str(log), "-e", calls)
        text = re.sub(r" <unfinished \.\.\.>\n", "\n", log.read_text())
        read: dict[str, int] = {}
        # a call that another thread interrupts is on two lines, joined by its thread
        open_calls: dict[str, str] = {}
        for line in text.splitlines():
            thread, rest = line.split(None, 1)
            if "resumed>" in rest:
                rest = open_calls.pop(thread, "") + rest
            elif not re.search(r"= -?\d+", rest):
                open_calls[thread] = rest
                continue
            found = re.match(r"(\w+)\(\d+<([^>]*)>.*= (\d+)$", rest)
            if found and str(tmp_path) in found[2]:
                kind = "written" if "write" in found[1] else "read"
                read[kind] = read.get(kind, 0) + int(found[3])
        assert READ <= read["read"] <= SLACK * READ
        assert WRITTEN <= read["written"] <= SLACK * WRITTEN
