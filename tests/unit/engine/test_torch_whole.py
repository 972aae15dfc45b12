"""Whole tensors that native code adds up as torch does, several sums in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from shardmerge.algebra.lowering import reduction_of
from shardmerge.engine import machine_code, native, reductions
from shardmerge.engine.halves import halved_sum
from shardmerge.engine.tile_buffers import TileBuffers
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.engine.torch_whole import TOGETHER, TorchVector, TorchWhole
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.torch_order import TorchNorm, TorchSum
from shardmerge.methods.kernels.torch_rows import ROW, sum_of_groups
from shardmerge.methods.passes import Elements, ElementValue, Together, TorchSums
from shardmerge.methods.program import torch_order_is_known

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not (native.is_usable() and torch_order_is_known()), reason="no such passes here"
    ),
]
CODES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
WAYS = {"F16": ("numbers", "pairs"), "BF16": ("lanes", "pairs"), "F32": ("lanes", "rows")}
#: Less than a part, less than a tile, whole tiles, and so many that every level of sums is full.
COUNTS = [200, 5 * 1024 + 33, BLOCK - 1, 9 * BLOCK, 2**22 + 3 * BLOCK + 1000]


class Tensors:
    """Tensors that are read as files are."""

    stored: tuple = ()
    beside = None

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._bytes = [bytes(one.view(torch.uint8).numpy()) for one in tensors]
        self._sizes = [one.element_size() for one in tensors]

    def read_elements(self, leaf: int, first: int, count: int, into: memoryview) -> None:
        size = self._sizes[leaf]
        into[: count * size] = self._bytes[leaf][first * size : (first + count) * size]


def numbers(count: int, code: str, seed: int) -> torch.Tensor:
    """Return numbers of few bits in places, whose squares often lie between two sums."""
    random = np.random.default_rng([count, seed])
    values = random.normal(0.01, 0.02, count)
    coarse = np.arange(count) // 5000 % 2 == 1
    values[coarse] = np.round(values[coarse] * 512) / 512
    return torch.from_numpy(values).to(CODES[code])


def values_of(x: Elements) -> list[ElementValue]:
    return [x[0], x[1]]


def whole_of(tensors: Sequence[torch.Tensor], code: str, kinds: Sequence[str], chunk: int) -> Any:
    """Return what adds up two tensors in some ways."""
    files, count = Tensors(tensors), len(tensors[0])
    ways = tuple(WAYS[code][kind == "sum"] for kind in kinds for _ in tensors)
    several = [values_of for _ in kinds]

    def tiles(kind: Any, wide: bool) -> ReducedTiles:
        def function(x: Elements) -> list[ElementValue]:
            found = [value for one in several for value in one(x)]
            return [value.double() for value in found] if wide else found

        reader = TileBuffers([0, 1], files, [tensors[0].element_size()] * 2, TOGETHER)
        return ReducedTiles(
            [0, 1], files, *reduction_of([code] * 2, (count,), function, kind), reader
        )

    wanted = [TorchSums(values_of, kind, chunk) for kind in kinds]
    codes = [[code] * 2 for _ in kinds]
    return TorchWhole(wanted, count, codes, tiles(ways, False), lambda: tiles("sums", True))


def tiles_of(values: np.ndarray, chunk: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each tile of each chunk, with the first element of its chunk."""
    for begin in range(0, len(values), chunk):
        end = min(begin + chunk, len(values))
        for first in range(begin, end, BLOCK):
            yield begin, values[first : min(first + BLOCK, end)]


def norms_seen(values: np.ndarray, code: str, chunk: int) -> np.ndarray:
    found, norms = [], {}
    for begin, tile in tiles_of(values, chunk):
        norm = norms.setdefault(begin, TorchNorm(code))
        norm.add(tile)
        found.append(norm.sums[0])
    return np.array(found)


def sums_seen(values: np.ndarray, code: str, chunk: int) -> np.ndarray:
    found = []
    for begin, tile in tiles_of(values, chunk):
        total = TorchSum(min(chunk, len(values) - begin), code)
        whole = len(tile) // total.size * total.size
        rows = total._folded(tile[None, :whole]).reshape(-1, total.rows, ROW)
        parts = sum_of_groups(rows).reshape(-1).astype(np.float64)
        found.append(halved_sum(parts) + halved_sum(tile[whole:].astype(np.float64)))
    return np.array(found)[:, None]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kinds", [["norm"], ["sum"], ["norm", "sum"], ["sum", "norm"]])
@pytest.mark.parametrize("chunk", [0, 1 << 20])
def test_bits_of_torch(code: str, count: int, kinds: list[str], chunk: int) -> None:
    tensors = [numbers(count, code, seed) for seed in (1, 2)]
    found = whole_of(tensors, code, kinds, chunk).run()
    for kind, (rows, seen) in zip(kinds, found, strict=True):
        function = torch.norm if kind == "norm" else torch.sum
        told = norms_seen if kind == "norm" else sums_seen
        for k, tensor in enumerate(tensors):
            parts = tensor.split(chunk or count)
            assert rows[k].tolist() == [float(function(part)) for part in parts]
            expected = told(tensor.float().numpy(), code, chunk or count)
            assert np.array_equal(seen[:, k], expected)


@pytest.mark.parametrize("cpu", ["sandybridge", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("code", CODES)
def test_same_bits_on_older_ones(monkeypatch: pytest.MonkeyPatch, code: str, cpu: str) -> None:
    """Of processors with other vectors, and of one that does not multiply and add at once."""
    needs = {"x86-64-v3": "avx2", "x86-64-v4": "avx512bw"}
    if not native.binding.get_host_cpu_features().get(needs.get(cpu, "f16c")):
        pytest.skip(f"this processor is no {cpu}")
    tensors = [numbers(2 * BLOCK + 5 * 1024, code, seed) for seed in (1, 2)]
    known = whole_of(tensors, code, ["norm", "sum"], 0).run()
    monkeypatch.setattr(machine_code, "_processor", lambda: (cpu, "+f16c"))
    reductions.native_reduction.cache_clear()
    found = whole_of(tensors, code, ["norm", "sum"], 0).run()
    reductions.native_reduction.cache_clear()
    for own, other in zip(found, known, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(own, other, strict=True))


@pytest.mark.parametrize("code", CODES)
def test_a_tile_alone_goes_on_from_sums_before(code: str) -> None:
    tensors = [numbers(3 * BLOCK + 77, code, seed) for seed in (1, 2)]
    whole = whole_of(tensors, code, ["norm"], 0)
    ((rows, seen),) = whole.run()
    last = TorchVector(whole, whole.count, 3 * BLOCK, 77, seen[2])
    assert np.array_equal(last.seen(0)[0], seen[3])
    assert np.array_equal(last.results(0), rows[:, 0])


@pytest.mark.parametrize("other", [{"chunk": 1 << 20}, {"axis": "last"}])
def test_sums_together_are_of_the_same_vectors(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="different vectors or chunks"):
        Together((TorchSums(values_of), TorchSums(values_of, **other)))
