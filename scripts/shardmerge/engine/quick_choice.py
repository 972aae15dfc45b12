"""Native code for which elements an unstable sort, that of C++'s library, puts at some ranks.

torch sorts with it. Where values are equal, which of them come first depends on every step. But no
more need be sorted than the parts in which the first or the last of the ranks lies, and of elements
of other keys than those two have it does not matter which they are. So 32 bits of each are enough.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shardmerge.algebra.samples import Runs
from shardmerge.engine.assembly import LANES
from shardmerge.engine.choice_bounds import Boundaries, KeysOf
from shardmerge.engine.memory import CHOOSABLE
from shardmerge.engine.quick_parts import choose
from shardmerge.engine.spilled import Bits
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.masks import BitMask, mask_of
from shardmerge.methods.passes import KeyBand, Order, Ranks

if TYPE_CHECKING:
    import torch

#: All bits but the sign's.
_MAGNITUDE = (1 << 31) - 1
#: Elements of what is tried, and how many different values they have.
_TRIED = ((17, 5), (60, 7), (1000, 3), (3000, 200), (20_000, 40))


def open_bits(mask: BitMask, keys: KeysOf, limits: Boundaries, runs: Runs) -> str:
    """Return as text which elements of the boundaries' keys are chosen, of some runs."""
    if not limits.open:
        return ""
    found = []
    for some, _, perhaps in limits.told_of(keys, runs):
        found.append(np.concatenate([mask_of(mask(*run), run[1]) for run in some])[perhaps])
    return base64.b64encode(np.packbits(np.concatenate(found))).decode()


def mask_like_torch(
    keys: KeysOf,
    count: int,
    ranks: Ranks,
    band: KeyBand,
    order: Order,
    code: str,
    beside: Path | None = None,
) -> BitMask:
    """Return the mask of what torch puts at some ranks.

    Args:
        keys: Bits of the magnitudes of elements.
        count: Elements.
        ranks: All of them less than that.
        band: The keys of such ranks.
        order: Which of torch's functions has it.
        code: Of the type that values have.
        beside: A folder where the mask of a large tensor has room.
    """
    if ranks.start >= ranks.stop:
        return BitMask(np.zeros(-(-count // 8), np.uint8))
    limits = Boundaries.of(ranks, count, band.low, band.high)
    if not limits.open or (count <= CHOOSABLE and is_torchs(order)):
        return quick_mask(keys, count, limits, order, beside)
    return _torchs_own(keys, count, ranks, order, code)


def _torchs_own(keys: KeysOf, count: int, ranks: Ranks, order: Order, code: str) -> BitMask:
    import torch

    from shardmerge.engine.buffers import torch_dtype
    from shardmerge.methods.kernels.torch_choice import torch_mask

    values = np.empty(count, np.float32)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        values[first : first + size] = keys(first, size).view(np.float32)
    tensor = torch.from_numpy(values)
    return torch_mask(tensor if order == "sort" else tensor.to(torch_dtype(code)), ranks, order)


def tensor_mask(values: torch.Tensor, ranks: Ranks, order: Order) -> BitMask:
    """Return what ``torch_mask`` does, by native code where there is some.

    Args:
        values: On the CPU, one-dimensional, not negative.
        ranks: Each less than the number of values.
        order: Which of torch's functions has them.
    """
    from shardmerge.engine.native import is_usable
    from shardmerge.methods.kernels.torch_choice import torch_mask

    count = len(values)
    narrow = is_usable() and values.itemsize <= 4 and count <= CHOOSABLE
    if ranks.start >= ranks.stop or not (narrow and is_torchs(order)):
        return torch_mask(values, ranks, order)
    keys = values.float().numpy().view(np.uint32) & np.uint32(_MAGNITUDE)
    return _array_mask(keys, ranks, order)


def _array_mask(keys: np.ndarray, ranks: Ranks, order: Order) -> BitMask:
    """Return the mask of what is chosen, at least one, by keys in memory, uint32 [elements]."""
    count, ends = len(keys), (ranks.start, ranks.stop - 1)
    places = [count - 1 - end if ranks.descending else end for end in ends]
    low, high = sorted(np.partition(keys, places)[places].tolist())
    limits = Boundaries.of(ranks, count, low, high)
    return quick_mask(lambda first, size: keys[first : first + size], count, limits, order)


def quick_mask(
    keys: KeysOf, count: int, limits: Boundaries, order: Order, beside: Path | None = None
) -> BitMask:
    """Return the mask of what is chosen.

    Args:
        keys: Bits of the magnitudes of elements.
        count: Elements, at most CHOOSABLE.
        limits: Of the choice.
        order: Whose it is.
        beside: A folder where the mask of a large tensor has room.
    """
    many = len(limits.open) * count > CHOOSABLE
    masks = []
    for own in limits.singles(count) if many else (limits,):
        masks.append(Bits(count, -(-count // LANES) * (LANES // 8), beside))
        choose(keys, count, own, order, masks[-1].bytes)
    first, *others = masks
    for other in others:
        first.bytes |= other.bytes
    return BitMask(first.finished())


@cache
def is_torchs(order: Order) -> bool:
    """Whether torch chooses the same, in what is tried."""
    import torch

    from shardmerge.methods.kernels.torch_choice import torch_mask

    random = np.random.default_rng(0)
    for count, different in _TRIED:
        values = random.integers(1, different + 1, count).astype(np.float32) / 64
        tensor = torch.from_numpy(values)
        for ranks in _tried_ranks(count, order):
            found = _array_mask(values.view(np.uint32), ranks, order)
            known = torch_mask(tensor, ranks, order)
            if not np.array_equal(*(mask_of(mask(0, count), count) for mask in (found, known))):
                return False
    return True


def _tried_ranks(count: int, order: Order) -> Sequence[Ranks]:
    largest, few = (Ranks(0, max(1, count // part), descending=True) for part in (3, 100))
    return (largest, Ranks(count // 5, count // 2)) if order == "sort" else (largest, few)
