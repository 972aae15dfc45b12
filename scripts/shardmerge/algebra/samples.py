"""Which elements of a tensor a check looks at."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

from shardmerge.algebra import expression as ex
from shardmerge.methods.registry import probing_of

if TYPE_CHECKING:
    import numpy as np

#: Half-open ranges of a flattened tensor, ascending: (first element, number of elements).
Runs = tuple[tuple[int, int], ...]
#: Elements of a run: a kernel of mergekit's gives the same bits for a block that begins at a
#: multiple of it as for the whole tensor.
RUN = 128
#: Runs of a tensor: one for every 8 MB of a large one of a 70B model.
RUNS = 64
#: Largest tensor, in elements, that a method which needs it whole is recomputed for.
WHOLE = 1 << 22
#: One of so many tiles is looked at again, and at least two; and one of so many tensors whole.
_EVERY = 16


def sample_runs(name: str, count: int) -> Runs:
    """Return which elements of a tensor are looked at: all of a small one, else a spread.

    The first and the last elements are among them; in between, each of equal stretches has one
    run, at a place that the tensor's name decides, so that no stride hides an error.

    Args:
        name: Of the tensor.
        count: Its elements.
    """
    blocks = -(-count // RUN)
    if blocks <= RUNS:
        return ((0, count),) if count else ()
    chosen = _spread(name, blocks, RUNS)
    chosen[0], chosen[-1] = 0, blocks - 1
    return tuple((block * RUN, min(RUN, count - block * RUN)) for block in chosen)


def spread_tiles(name: str, number: int) -> list[int]:
    """Return which of a tensor's tiles are looked at again, at places that its name decides."""
    return _spread(name, number, min(number, max(2, number // _EVERY)))


def _spread(name: str, number: int, parts: int) -> list[int]:
    """Return a number of each of equal stretches, ascending; there are no more than numbers."""
    ends = [i * number // parts for i in range(parts + 1)] if parts else []
    pairs = enumerate(itertools.pairwise(ends))
    return [low + _chance(f"{i} {name}") % (high - low) for i, (low, high) in pairs]


def remembered_runs(name: str, count: int, tile: int) -> Runs:
    """Return the elements of the tiles that are looked at again, and the others of the sample.

    Args:
        name: Of the tensor.
        count: Its elements.
        tile: Those of a tile, a multiple of RUN.
    """
    chosen = spread_tiles(name, -(-count // tile))
    tiles = [(i * tile, min(tile, count - i * tile)) for i in chosen]
    others = [run for run in sample_runs(name, count) if run[0] // tile not in chosen]
    return tuple(sorted(tiles + others))


def is_looked_at_whole(name: str) -> bool:
    """Whether a tensor is one of the few of which all that can be found is found again."""
    return _chance(f"whole {name}") % _EVERY == 0


def _chance(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def count_of(runs: Runs) -> int:
    """Return how many elements runs have."""
    return sum([count for _, count in runs])


def positions(runs: Runs) -> np.ndarray:
    """Return the index of every element of runs, int64."""
    # numpy is what most plans do without
    from shardmerge.methods.kernels.plain import places_of

    return places_of(runs)


def is_probed(call: ex.Call) -> bool:
    """Whether a job records numbers of a call that its check verifies, as it is too large for more.

    Args:
        call: Of a merge method or step.
    """
    if not probing_of(call.method):
        return False
    return max(map(ex.elements, (call, *call.inputs))) > WHOLE


def probed_calls(expression: ex.Expression) -> tuple[ex.Call, ...]:
    """Return the distinct calls of an expression of which a job records numbers, in order."""
    calls = (part for part in ex.walk(expression) if isinstance(part, ex.Call))
    return tuple(dict.fromkeys(filter(is_probed, calls)))
