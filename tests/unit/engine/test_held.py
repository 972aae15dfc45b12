"""Sources that are held between passes and result: each is read once, with the same bytes."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.engine_cases import SMALL, Models, models_of_method, tuned
from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.engine import ShardRecord, make_tasks, native
from shardmerge.engine.held import HeldSources, StayingLeaf, tile_buffers
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.memory import TUNING, held_bytes
from shardmerge.engine.tile_buffers import TileBuffers
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.registry import methods

needs_native = pytest.mark.skipif(not native.is_usable(), reason="no native code here")
SHAPES = {"large": (523, 300), "last": (64, 96), "row": (700,), "one": (1,)}
METHODS = [
    (one.name, numerics)
    for one in methods()
    for numerics in (FLOAT32, MERGEKIT)
    if one.kernel and numerics in one.renderings and one.rendering(numerics).passes
]


def models_of(folder: Path, name: str, dtype: torch.dtype, numerics: Numerics) -> tuple:
    """Return models of some tensors, and the specification of what a method makes of them."""
    return models_of_method(folder, name, SHAPES, numerics, dtype)


def built(models: Models, spec: ShardSpec, held: int, threads: int) -> tuple[bytes, ShardRecord]:
    with tuned(**SMALL, held=held):
        record = models.build(spec, threads=threads)
    return (models.folder / "out.safetensors").read_bytes(), record


@needs_native
class TestBuilds:
    @pytest.mark.parametrize(("name", "numerics"), METHODS)
    def test_have_the_same_bytes_and_answers(
        self, tmp_path: Path, name: str, numerics: Numerics
    ) -> None:
        models, spec = models_of(tmp_path, name, torch.float16, numerics)
        expected, record = built(models, spec, 0, 1)
        most = TUNING.held
        for held in (most, 100_000):  # the second is too little for the largest
            for threads in (1, 4):
                found, own = built(models, spec, held, threads)
                assert found == expected
                assert (own.passes, own.nonfinite) == (record.passes, record.nonfinite)
                assert own.bytes_read <= record.bytes_read

    @pytest.mark.parametrize("name", ["slerp", "nuslerp", "model_stock", "multislerp"])
    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_read_each_source_once(self, tmp_path: Path, name: str, numerics: Numerics) -> None:
        models, spec = models_of(tmp_path, name, torch.bfloat16, numerics)
        sources = sum(t.nbytes for table in models.tensors.values() for t in table.values())
        for threads in (1, 3):
            _, record = built(models, spec, TUNING.held, threads)
            assert record.bytes_read == sources
        assert built(models, spec, 0, 1)[1].bytes_read > 1.9 * sources

    def test_sums_of_calls_and_other_sources(self, tmp_path: Path) -> None:
        models, spec = models_of(tmp_path, "slerp", torch.float16, FLOAT32)
        first, second = (models.source(one, "large") for one in models.tensors)
        (call,) = [one.expression for one in spec.tensors if one.name == "large"]
        whole = ex.Linear(((0.5, call), (0.3, first), (0.2, ex.Cast(second, "F16"))))
        again = ex.Call("slerp", (call, second), 0, (("t", 0.25),), output_shape=call.shape)
        made = {"sum": ("F32", whole), "again": ("BF16", again)}
        spec = models.spec(made)
        assert all(held_bytes(task, TUNING.held) for task in make_tasks(spec))
        expected, _ = built(models, spec, 0, 1)
        assert built(models, spec, TUNING.held, 2)[0] == expected

    def test_hold_nothing_that_no_pass_reads(self, tmp_path: Path) -> None:
        for name in ("nearswap", "geometric_task_arithmetic"):
            _, spec = models_of(tmp_path, name, torch.float16, FLOAT32)
            assert not any(held_bytes(task, TUNING.held) for task in make_tasks(spec))

    def test_nan_of_sources_are_all_one(self, tmp_path: Path) -> None:
        models, spec = models_of(tmp_path, "multislerp", torch.float16, FLOAT32)
        for table in models.tensors.values():
            table["large"][3, 5] = float("nan")
        models = Models(tmp_path, models.tensors)
        expected, record = built(models, spec, 0, 1)
        found, own = built(models, spec, TUNING.held, 1)
        assert (found, own.nonfinite) == (expected, record.nonfinite)

    @pytest.mark.parametrize("threads", [1, 4])
    def test_end_with_what_a_thread_raised(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
    ) -> None:
        models, spec = models_of(tmp_path, "slerp", torch.float16, FLOAT32)
        whole, reads = InputFiles.read, []

        def read(self: InputFiles, file: int, offset: int, into: memoryview) -> None:
            reads.append(offset)
            if len(reads) == 3:
                raise UserError("ends before byte 5")
            whole(self, file, offset, into)

        monkeypatch.setattr(InputFiles, "read", read)
        with pytest.raises(UserError, match="ends before byte 5"):
            built(models, spec, TUNING.held, threads)


class Files:
    """Leaves of numbers, each its own index, that count what is read of them."""

    stored, beside = (), None

    def __init__(self, count: int) -> None:
        self.values = np.arange(count, dtype=np.uint32)
        self.read: Counter[str] = Counter()

    def locate(self, leaf: str) -> SimpleNamespace:
        return SimpleNamespace(dtype="U32", name=leaf)

    def read_elements(
        self, leaf: SimpleNamespace, first: int, count: int, into: memoryview
    ) -> None:
        self.read[leaf.name] += count
        np.frombuffer(into, np.uint32, count)[:] = self.values[first : first + count]


def leaf_of(files: Files) -> tuple[StayingLeaf, np.ndarray]:
    memory = np.zeros(len(files.values) + 64, np.uint32)
    view = memoryview(memory).cast("B")
    return StayingLeaf(files.locate("a"), files, view, memory.ctypes.data), memory


class TestLeaves:
    COUNT = 3 * BLOCK

    def test_are_read_once_by_any_thread(self) -> None:
        files = Files(self.COUNT)
        leaf, memory = leaf_of(files)
        ends = np.random.default_rng(0).integers(1, self.COUNT, 500).tolist()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(leaf.need, [*ends, self.COUNT]))
        assert files.read == {"a": self.COUNT}
        assert np.array_equal(memory[: self.COUNT], files.values)

    def test_read_again_what_is_not_there(self) -> None:
        files = Files(self.COUNT)
        leaf, _ = leaf_of(files)
        leaf.need(1000)
        into = memoryview(bytearray(4 * 50))
        for first, read in ((900, 1000), (990, 1050)):
            leaf.read([(first, 50)], into)
            assert np.frombuffer(into, np.uint32).tolist() == list(range(first, first + 50))
            assert files.read["a"] == read
        leaf.read([(3, 4), (990, 10)], into)
        found = np.frombuffer(into, np.uint32)[:14].tolist()
        assert found == [*range(3, 7), *range(990, 1000)]
        assert files.read["a"] == 1050

    def test_are_read_ahead_in_order_and_not_else(self) -> None:
        files = Files(self.COUNT)
        leaf, _ = leaf_of(files)
        buffers = tile_buffers([leaf], files, [4], most=2 * BLOCK)
        assert buffers.places(0, 100) == [leaf.address]
        assert files.read["a"] == 100
        buffers.until = self.COUNT
        assert buffers.places(100, 50) == [leaf.address + 400]
        assert files.read["a"] == 100 + 2 * BLOCK
        buffers.places(100 + BLOCK, BLOCK)  # it is there
        assert files.read["a"] == 100 + 2 * BLOCK
        buffers.places(2 * BLOCK, BLOCK)
        assert files.read["a"] == self.COUNT

    def test_spans_are_brought_together(self) -> None:
        files = Files(self.COUNT)
        leaf, memory = leaf_of(files)
        sources = HeldSources(files, (), 0, memoryview(memory).cast("B"), 0)
        buffers = tile_buffers([leaf], sources, [4])
        leaf.need(50)
        (place,) = buffers.gathered([(10, 20), (1000, 3)])
        assert place != leaf.address
        found = np.array(buffers._buffers[0][: 4 * 23]).view(np.uint32)
        assert found.tolist() == [*range(10, 30), 1000, 1001, 1002]

    def test_others_have_buffers(self) -> None:
        files = Files(self.COUNT)
        assert type(tile_buffers([files.locate("a")], files, [4])) is TileBuffers
