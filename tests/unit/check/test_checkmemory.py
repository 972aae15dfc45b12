"""The memory that a check asks for covers what it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardmerge.algebra.expression import Call, Source
from shardmerge.algebra.samples import WHOLE
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.check.memory import check_bytes
from shardmerge.engine.memory import STREAMING_BYTES
from shardmerge.engine.tasks import make_tasks

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"

#: Checks a shard of zeros made by `arcee_fusion` of two models, and prints the peak of its memory.
PROBE = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_checkmemory import spec_of
from shardmerge.engine.record import peak_memory
from shardmerge.base.safetensors import write_header
from shardmerge.check.shard import check_shard
shape = (int(sys.argv[3]), 1024)
spec = spec_of(shape)
paths = {}
for key in spec.required_files():
    paths[key] = Path(key[0])
    with open(paths[key], "wb") as file:
        file.write(write_header([("t", "F64", shape)], {}))
        file.truncate(file.tell() + 8 * shape[0] * shape[1])
with open("out", "wb") as file:
    file.write(write_header([("t", "F64", shape)], {"format": "pt"}))
    file.truncate(file.tell() + 8 * shape[0] * shape[1])
found = check_shard(spec, Path("out"), paths, [])
print(peak_memory(), len(found["not_sampled"]))
"""


def spec_of(
    shape: Any, method: str = "arcee_fusion", numerics: Numerics = MERGEKIT, code: str = "F64"
) -> Any:
    """Return the specification of a merge of two models; of float64 it needs whole tensors."""
    sources = tuple(Source(f"m{i}", "f", "t", code, shape) for i in range(2))
    call = Call(
        method,
        sources,
        base=0,
        parameters=(("t", 0.5),),
        tensor="t",
        models=tuple(s.model for s in sources),
        output_shape=shape,
    )
    tensor = OutputTensor("t", code, shape, call)
    files = {(s.model, s.file): "sha256:0" for s in sources}
    return ShardSpec((tensor,), files, numerics, False)


class TestCheckBytes:
    def test_samples_take_nothing_more(self) -> None:
        source = Source("m", "f", "t", "F16", (4096, 4096))
        tensor = OutputTensor("t", "F16", source.shape, source)
        spec = ShardSpec((tensor,), {("m", "f"): "sha256:0"}, FLOAT32, False)
        assert check_bytes(make_tasks(spec)) == STREAMING_BYTES

    def test_passes_take_nothing_more(self) -> None:
        for numerics in (FLOAT32, MERGEKIT):
            spec = spec_of((1000, 1024), "arcee_fusion", numerics, "F16")
            assert check_bytes(make_tasks(spec)) == STREAMING_BYTES

    def test_a_tensor_that_is_too_large_is_not_recomputed(self) -> None:
        assert check_bytes(make_tasks(spec_of((WHOLE // 1024 + 1, 1024)))) == STREAMING_BYTES

    @pytest.mark.slow
    def test_covers_what_a_check_takes(self, tmp_path: Path) -> None:
        rows = WHOLE // 1024
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(SCRIPTS), str(Path(__file__).parent), str(rows)],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peak, left_out = map(int, done.stdout.split())
        assert left_out == 0
        needed = check_bytes(make_tasks(spec_of((rows, 1024))))
        assert peak < needed < 4 * peak, (peak, needed)  # how much of it pages take varies
