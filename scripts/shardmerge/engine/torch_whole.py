"""Whole tensors added up as torch does, several sums at once, and what checks are told of tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from shardmerge.engine.halves import halved_sum
from shardmerge.engine.native import place_of
from shardmerge.engine.scratch import scratch
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.torch_order import TorchNorm, TorchSum, new_sum
from shardmerge.methods.kernels.torch_rows import HIGHER, ROW
from shardmerge.methods.passes import TorchSums

#: Elements that are added up by one call.
TOGETHER = 8 * BLOCK


class TorchWhole:
    """Answers requests for sums of one whole tensor, all with the same chunks.

    Args:
        wanted: The requests.
        count: Elements of the tensor.
        codes: For each request of its values' types.
        tiles: Adds up the values of all requests.
        rest: Returns what makes the values themselves, where they are fewer than a part.

    Attributes:
        chunk: Elements of a chunk.
    """

    def __init__(
        self,
        wanted: Sequence[TorchSums],
        count: int,
        codes: Sequence[Sequence[str]],
        tiles: ReducedTiles,
        rest: Callable[[], ReducedTiles],
    ) -> None:
        self.wanted, self.count, self.codes = wanted, count, codes
        self.chunk = wanted[0].chunk or count
        self.tiles, self.rest = tiles, cache(rest)

    def run(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each request the answer, float64 [values, chunks], and what is seen.

        That is float64 [tiles, values, numbers]: of a sum the tile's own sum, of a norm the partial
        sums after the tile.
        """
        chunks = []
        self.tiles.in_order(self.count)
        for first in range(0, self.count, self.chunk):
            size = min(self.chunk, self.count - first)
            chunks.append(TorchVector(self, size, first, size))
        found = []
        for own in range(len(self.wanted)):
            rows = [one.results(own) for one in chunks]
            seen = [one.seen(own) for one in chunks]
            found.append((np.stack(rows, axis=1), np.concatenate(seen)))
        return found


class TorchVector:
    """The sums of one chunk, of consecutive elements that begin with a tile.

    Args:
        whole: What adds them up.
        length: Elements of the chunk.
        first, count: Those that are added up; whole tiles, unless they end with the chunk.
        before: Partial sums of norms before them, [norms, lanes]; none if the chunk begins there.
    """

    def __init__(
        self,
        whole: TorchWhole,
        length: int,
        first: int,
        count: int,
        before: np.ndarray | None = None,
    ) -> None:
        self._whole = whole
        pairs = list(zip(whole.wanted, whole.codes, strict=True))
        self._sums = [[new_sum(one, length, code) for code in codes] for one, codes in pairs]
        every = self._every = [one for own in self._sums for one in own]
        self._norms = [one for one in every if isinstance(one, TorchNorm)]
        self._totals = [one for one in every if isinstance(one, TorchSum)]
        # rows of a part, and its elements; those of a row where no parts are made
        self._rows = self._totals[0].rows if self._totals else 1
        self._unit = self._totals[0].size if self._totals else ROW
        lanes = self._norms[0].lanes if self._norms else 1
        tiles, kept = -(-count // BLOCK), len(self._totals)
        self._squares = np.zeros((tiles + 1, len(self._norms), lanes), np.float32)
        if before is not None:
            self._squares[0] = before
        #: Of each whole tile what is left of its parts by halves; then the sums of all tiles.
        self._halves = np.empty((count // BLOCK, kept, ROW))
        self._own = np.zeros((tiles, kept))
        self._levels = np.zeros((kept, HIGHER, ROW), np.float32)
        self._add_all(first, count)

    def results(self, own: int) -> np.ndarray:
        """Return the answers of a request, float64 [values]."""
        return np.concatenate([one.result() for one in self._sums[own]])

    def seen(self, own: int) -> np.ndarray:
        """Return what a request sees of each tile, float64 [tiles, values, numbers]."""
        kind = self._whole.wanted[own].kind
        pairs = zip(self._whole.wanted, self._sums, strict=True)
        sizes = [len(sums) if one.kind == kind else 0 for one, sums in pairs]
        values = slice(sum(sizes[:own]), sum(sizes[: own + 1]))
        if kind == "sum":
            return self._own[:, values, None]
        return self._squares[1:, values].astype(np.float64)

    def _add_all(self, first: int, count: int) -> None:
        whole = count // BLOCK * BLOCK
        for begin in range(0, whole, TOGETHER):
            self._add(first, begin, min(TOGETHER, whole - begin))
        tiles, left = whole // BLOCK, (count - whole) // self._unit * self._unit
        self._own[:tiles] = halved_sum(self._halves)
        if left:
            parts = self._add(first, whole, left)[:, : left // self._unit]
            parts = parts.reshape(len(parts), left // self._unit * ROW)
            self._own[tiles] += halved_sum(parts.astype(np.float64))
        last = self._squares[tiles + (left > 0)]
        for k, norm in enumerate(self._norms):
            norm.sums = last[k : k + 1]
        for total, higher in zip(self._totals, self._levels, strict=True):
            total.begin_with(higher)
        if count > whole + left:
            self._add_rest(first + whole + left, count - whole - left)
            for k, norm in enumerate(self._norms):
                self._squares[-1, k] = norm.sums[0]

    def _add(self, first: int, begin: int, count: int) -> np.ndarray:
        """Add whole tiles, or whole parts of less than one.

        Args:
            first: The first element of all.
            begin, count: How far behind it these begin, and how many they are.

        Returns:
            The last tile's parts, float32 [sums, parts of a whole tile, 32], until the next call.
        """
        kept, many, tile = len(self._totals), BLOCK // self._unit, begin // BLOCK
        parts = scratch("torch's parts", kept * many * ROW, "<f4").reshape(kept, many, ROW)
        told = [BLOCK, 1]
        if kept:
            room = scratch("room for halves", many * ROW // 2, "<f8")
            arrays = self._levels, parts, room, self._halves[tile:]
            told += [begin // self._unit, *map(place_of, arrays)]
        own = self._squares[tile:]
        self._whole.tiles.add_whole(own, first + begin, count, self._rows, np.array(told))
        return parts

    def _add_rest(self, first: int, count: int) -> None:
        """Add what is less than a part."""
        values = self._whole.rest().values(first, count).astype(np.float32)
        for one, own in zip(self._every, values, strict=True):
            one.add(own)
        totals = [isinstance(one, TorchSum) for one in self._every]
        self._own[-1] += halved_sum(values[totals].astype(np.float64))
