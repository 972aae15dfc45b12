"""Native code for which elements an unstable sort, that of C++'s library, puts at some ranks.

torch sorts with it. Where values are equal, which of them come first depends on every step. But no
more need be sorted than the parts in which the first or the last of the ranks lies, and of elements
of other keys than those two have it does not matter which they are. So 32 bits of each are enough.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from shardmerge.algebra.samples import Runs
from shardmerge.engine.assembly import LANES
from shardmerge.engine.heap_text import heap_text
from shardmerge.engine.memory import CHOOSABLE
from shardmerge.engine.native import array_code
from shardmerge.engine.quick_choice_text import NAN, chosen_text, numbers_text, parts_text
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.masks import BitMask, mask_of
from shardmerge.methods.passes import KeyBand, Order, Ranks

if TYPE_CHECKING:
    import torch

#: Above all keys.
_NONE = (1 << 31) - 1
#: What is left of so few elements is sorted by insertion.
_FEW = {"sort": 16, "topk": 3}
#: ``torch.topk`` selects by a heap where no more than one of so many elements is wanted.
_LEAST_SHARE = 64
#: Elements of what is tried, and how many different values they have.
_TRIED = ((17, 5), (60, 7), (1000, 3), (3000, 200), (20_000, 40))
#: One tensor at a time is chosen from, so that the numbers of one are held.
_TURN = threading.Lock()
#: Returns the keys of consecutive elements, uint32: (first, count).
KeysOf = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Boundaries:
    """Which elements are chosen for sure, and between which the sort alone decides.

    Keys are as they are sorted: a descending order has its own.

    Args:
        descending: The greatest magnitude has the least key.
        least, most: Elements of keys between them are chosen, those included.
        open: Keys of which some elements are chosen, ascending.
        begin, end: The ranks between which those lie.
    """

    descending: bool
    least: int
    most: int
    open: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def of(cls, ranks: Ranks, count: int, low: int, high: int) -> Boundaries:
        """Return those of some ranks, at least one.

        Args:
            ranks: The last of them less than the number of elements.
            count: Elements.
            low, high: The least and the greatest bits of a magnitude with such a rank.
        """
        low, high = min(low, NAN), min(high, NAN)
        first, last = (NAN - high, NAN - low) if ranks.descending else (low, high)
        zero = NAN if ranks.descending else 0
        begins, ends = ranks.start > 0, ranks.stop < count
        # which zeros are chosen does not matter
        keys = {key for key, is_open in ((first, begins), (last, ends)) if is_open} - {zero}
        return cls(
            ranks.descending,
            first + 1 if begins else 0,
            last - 1 if ends else NAN,
            tuple(sorted(keys)),
            ranks.start if begins and first != zero else 0,
            ranks.stop if ends and last != zero else count,
        )

    def told(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return by the bits of magnitudes which elements are chosen for sure, and which perhaps.

        Args:
            keys: uint32 [elements].
        """
        sorted_by = np.minimum(keys, NAN).astype(np.int64)
        if self.descending:
            sorted_by = NAN - sorted_by
        sure = (sorted_by >= self.least) & (sorted_by <= self.most)
        return sure, np.isin(sorted_by, self.open)


def open_bits(mask: BitMask, keys: KeysOf, limits: Boundaries, runs: Runs) -> str:
    """Return as text which elements of the boundaries' keys are chosen, of some runs."""
    if not limits.open:
        return ""
    parts = [mask_of(mask(*run), run[1])[limits.told(keys(*run))[1]] for run in runs]
    return base64.b64encode(np.packbits(np.concatenate(parts))).decode()


def mask_like_torch(
    keys: KeysOf, count: int, ranks: Ranks, band: KeyBand, order: Order, code: str
) -> BitMask:
    """Return the mask of what torch puts at some ranks.

    Args:
        keys: Bits of the magnitudes of elements.
        count: Elements.
        ranks: All of them less than that.
        band: The keys of such ranks.
        order: Which of torch's functions has it.
        code: Of the type that values have.
    """
    if ranks.start >= ranks.stop:
        return BitMask(np.zeros(-(-count // 8), np.uint8))
    limits = Boundaries.of(ranks, count, band.low, band.high)
    if not limits.open or (count <= CHOOSABLE and is_torchs(order)):
        return quick_mask(keys, count, limits, order)
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
    return _array_mask(values.float().numpy().view(np.uint32) & np.uint32(_NONE), ranks, order)


def _array_mask(keys: np.ndarray, ranks: Ranks, order: Order) -> BitMask:
    """Return the mask of what is chosen, at least one, by keys in memory, uint32 [elements]."""
    count, ends = len(keys), (ranks.start, ranks.stop - 1)
    places = [count - 1 - end if ranks.descending else end for end in ends]
    low, high = sorted(np.partition(keys, places)[places].tolist())
    limits = Boundaries.of(ranks, count, low, high)
    return quick_mask(lambda first, size: keys[first : first + size], count, limits, order)


def quick_mask(keys: KeysOf, count: int, limits: Boundaries, order: Order) -> BitMask:
    """Return the mask of what is chosen.

    Args:
        keys: Bits of the magnitudes of elements.
        count: Elements, at most CHOOSABLE.
        limits: Of the choice.
        order: Whose it is.
    """
    bits = np.zeros(-(-count // LANES) * (LANES // 8), np.uint8)
    if not limits.open:
        _number(keys, count, limits, bits, None)
        return BitMask(bits)
    with _TURN:
        # before the first element lies one that is never greater
        room = np.empty(count + 1 + LANES, np.uint32)
        room[0] = 0
        _number(keys, count, limits, bits, room)
        one, two = _two(limits)
        numbers = count, one, two + count
        _sort(room, numbers, limits, order)
        stretch = room[1 + limits.begin : 1 + limits.end]
        array_code(chosen_text)(bits, [stretch], len(stretch), numbers)
    return BitMask(bits)


def _sort(
    room: np.ndarray, numbers: tuple[int, int, int], limits: Boundaries, order: Order
) -> None:
    """Sort numbers as far as it is needed.

    Args:
        room: They follow its first.
        numbers: How many there are, and the first numbers of elements of the open keys.
        limits: Of the choice.
        order: Whose it is.
    """
    count, own = numbers[0], room[1:]
    if order == "topk" and limits.end * _LEAST_SHARE <= count:
        array_code(heap_text)(own, [], count, [*numbers, limits.end, 0])
        return
    depth = 2 * (count.bit_length() - 1)
    stack = np.zeros(3 * (depth + 2), np.int64)
    stack[:3] = 0, count, depth
    state = np.array([0, 0, 3], np.int64)
    while state[0] >= 0:
        more = [*numbers, limits.begin, limits.end, int(state[2]), _FEW[order]]
        array_code(parts_text)(state, [room, stack], count, more)
        if state[0] >= 0:
            first, last = int(state[0]), int(state[1])
            middle, sorts = (limits.end, 0) if order == "topk" else (last, 1)
            part = [*numbers, middle - first, sorts]
            array_code(heap_text)(own[first:], [], last - first, part)


def _two(limits: Boundaries) -> tuple[int, int]:
    return (*limits.open, _NONE, _NONE)[:2]


def _number(
    keys: KeysOf, count: int, limits: Boundaries, bits: np.ndarray, room: np.ndarray | None
) -> None:
    """Fill the room with the elements' numbers, and a mask with those that are chosen for sure."""
    code = array_code(numbers_text, limits.descending)
    one, two = _two(limits)
    own = np.zeros(BLOCK + LANES, np.uint32)
    rest = np.empty(BLOCK + LANES, np.uint32)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        own[:size] = keys(first, size)
        numbers = rest if room is None else room[1 + first :]
        more = [first, count, one, two, limits.least, limits.most]
        code(numbers, [own, bits[first // 8 :]], size, more)


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
