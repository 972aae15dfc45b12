"""Tensors put together from boxes of others: stacks, slices, concatenations, transpositions.

All of them are one thing: for each of some boxes of the result, the box of an operand that is
there, and which axis of the operand runs along which axis of the result. They compose, and they
can be turned round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

#: Axis of what has one index along it and no axis in the result.
NONE = -1


@dataclass(frozen=True)
class Patch:
    """A box of a tensor, and the box of an operand that is there.

    Args:
        operand: What the elements come from.
        begin, sizes: The operand's box: first index and length along each of its axes.
        axes: For each of the operand's axes the result's, or NONE where its length is 1. Along
            an axis of the result that is none of these the box has length 1.
        at: First index of the box along each of the result's axes.
    """

    operand: Any
    begin: tuple[int, ...]
    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    at: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Lengths of the box along the result's axes."""
        found = [1] * len(self.at)
        for size, axis in zip(self.sizes, self.axes, strict=True):
            if axis != NONE:
                found[axis] = size
        return tuple(found)

    @property
    def in_order(self) -> bool:
        """Whether the operand's elements have the order that the result's have."""
        return _ascends(self.axes, self.sizes)

    @property
    def turned(self) -> bool:
        """Whether only the operand's last two axes are exchanged."""
        if len(self.axes) < 2 or self.in_order or NONE in self.axes[-2:]:
            return False
        swap = (*range(len(self.axes) - 2), len(self.axes) - 1, len(self.axes) - 2)
        return _ascends([self.axes[i] for i in swap], [self.sizes[i] for i in swap])


class Arrangement(NamedTuple):
    """A tensor as boxes: its shape, and pieces that fill it, none over another."""

    shape: tuple[int, ...]
    pieces: tuple[Patch, ...]

    @property
    def is_full(self) -> bool:
        """Whether every element comes from somewhere."""
        return sum(math.prod(piece.sizes) for piece in self.pieces) == math.prod(self.shape)

    def operands(self) -> list[Any]:
        """Return the distinct operands in order of first use."""
        return list(dict.fromkeys([piece.operand for piece in self.pieces]))


def entire(operand: Hashable, shape: Sequence[int]) -> Arrangement:
    """Return an operand as it is."""
    count = len(shape)
    piece = Patch(operand, (0,) * count, tuple(shape), tuple(range(count)), (0,) * count)
    return Arrangement(tuple(shape), (piece,))


def only(made: Arrangement) -> Any:
    """Return the operand that an arrangement is as it is, or None."""
    piece = made.pieces[0] if len(made.pieces) == 1 else None
    if piece is None or any(piece.begin) or any(piece.at) or piece.sizes != made.shape:
        return None
    if piece.axes != tuple(range(len(made.shape))):
        return None
    shape = getattr(piece.operand, "shape", made.shape)
    return piece.operand if tuple(shape) == made.shape else None


def stack(parts: Sequence[Arrangement], axis: int = 0) -> Arrangement:
    """Return tensors of one shape along a new axis.

    Raises:
        ValueError: If their shapes differ.
    """
    _check(len({part.shape for part in parts}) == 1)
    shape = _insert(parts[0].shape, axis, len(parts))
    pieces = [
        replace(
            piece,
            axes=tuple(a + (a >= axis) for a in piece.axes),
            at=_insert(piece.at, axis, number),
        )
        for number, part in enumerate(parts)
        for piece in part.pieces
    ]
    return Arrangement(shape, tuple(pieces))


def concatenate(parts: Sequence[Arrangement], axis: int = 0) -> Arrangement:
    """Return tensors one behind the other along an axis.

    Raises:
        ValueError: If their shapes differ otherwise.
    """
    _check(all(axis < len(part.shape) for part in parts))
    _check(len({with_value(part.shape, axis, 0) for part in parts}) == 1)
    pieces, place = [], 0
    for part in parts:
        pieces += [replace(p, at=with_value(p.at, axis, p.at[axis] + place)) for p in part.pieces]
        place += part.shape[axis]
    return Arrangement(with_value(parts[0].shape, axis, place), tuple(pieces))


def chunk(part: Arrangement, count: int, axis: int = 0) -> list[Arrangement]:
    """Return a tensor cut into parts of one length along an axis.

    Raises:
        ValueError: If it cannot be.
    """
    _check(axis < len(part.shape) and part.shape[axis] % count == 0)
    length = part.shape[axis] // count
    inner = entire(None, part.shape)
    found = []
    for number in range(count):
        piece = replace(
            inner.pieces[0],
            begin=with_value((0,) * len(part.shape), axis, number * length),
            sizes=with_value(part.shape, axis, length),
        )
        cut = Arrangement(piece.sizes, (piece,))
        found.append(compose(cut, {None: part}.__getitem__))
    return found


def transpose(part: Arrangement, first: int, second: int) -> Arrangement:
    """Return a tensor with two axes exchanged.

    Raises:
        ValueError: If it does not have them.
    """
    _check(max(first, second) < len(part.shape))
    swap = {first: second, second: first}

    def swapped(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(values[swap.get(axis, axis)] for axis in range(len(values)))

    pieces = [
        replace(p, axes=tuple(swap.get(a, a) for a in p.axes), at=swapped(p.at))
        for p in part.pieces
    ]
    return Arrangement(swapped(part.shape), tuple(pieces))


def invert(part: Arrangement, name: Hashable) -> dict[Any, list[Patch]]:
    """Return for each operand what an arrangement holds of it, as pieces taken from that.

    Args:
        part: The arrangement.
        name: What it is called as an operand of the results.
    """
    found: dict[Any, list[Patch]] = {}
    for piece in part.pieces:
        along = {axis: own for own, axis in enumerate(piece.axes) if axis != NONE}
        axes = tuple(along.get(axis, NONE) for axis in range(len(part.shape)))
        turned = Patch(name, piece.at, piece.extents, axes, piece.begin)
        found.setdefault(piece.operand, []).append(turned)
    return found


def is_alike(one: Arrangement, other: Arrangement) -> bool:
    """Whether two arrangements differ in nothing but their operands, each taken once."""
    if one.shape != other.shape or len(one.pieces) != len(other.pieces):
        return False
    pairs = zip(one.pieces, other.pieces, strict=True)
    if any(replace(a, operand=b.operand) != b for a, b in pairs):
        return False
    return len(one.operands()) == len(other.operands()) == len(one.pieces)


def compose(outer: Arrangement, inner: Callable[[Any], Arrangement]) -> Arrangement:
    """Return an arrangement whose operands are arrangements themselves.

    Args:
        outer: The arrangement.
        inner: Returns what an operand of it is.
    """
    pieces = [
        made
        for piece in outer.pieces
        for part in inner(piece.operand).pieces
        if (made := _meet(piece, part)) is not None
    ]
    return normal(Arrangement(outer.shape, tuple(pieces)))


def steps(shape: Sequence[int]) -> list[int]:
    """Return how many elements lie between neighbours along each axis."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def element_spans(made: Arrangement) -> tuple[tuple[int, int], ...]:
    """Return for each piece its first element and the one behind its last."""
    along, found = steps(made.shape), []
    for piece in made.pieces:
        begin = sum(a * s for a, s in zip(piece.at, along, strict=True))
        length = sum((n - 1) * s for n, s in zip(piece.extents, along, strict=True)) + 1
        found.append((begin, begin + length))
    return tuple(found)


def normal(made: Arrangement) -> Arrangement:
    """Return an arrangement with as few pieces as it needs, in their order."""
    pieces = [_paired(piece) for piece in made.pieces]
    for axis in reversed(range(len(made.shape))):
        pieces = _joined(pieces, axis)
    return Arrangement(made.shape, tuple(sorted(pieces, key=lambda piece: piece.at)))


def _meet(piece: Patch, part: Patch) -> Patch | None:
    """Return what a piece takes of one of its operand's own pieces."""
    low = tuple(map(max, piece.begin, part.at))
    ends = zip(piece.begin, piece.sizes, part.at, part.extents, strict=True)
    high = tuple(min(a + n, b + m) for a, n, b, m in ends)
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return None
    begin, sizes, axes = [], [], []
    for own, size, axis in zip(part.begin, part.sizes, part.axes, strict=True):
        inside = axis != NONE
        begin.append(own + low[axis] - part.at[axis] if inside else own)
        sizes.append(high[axis] - low[axis] if inside else size)
        axes.append(piece.axes[axis] if inside else NONE)
    at = list(piece.at)
    for axis, outer in enumerate(piece.axes):
        if outer != NONE:
            at[outer] += low[axis] - piece.begin[axis]
    return Patch(part.operand, tuple(begin), tuple(sizes), tuple(axes), tuple(at))


def _paired(piece: Patch) -> Patch:
    """Return a piece whose axes without a partner have one, in their order."""
    free = [axis for axis in range(len(piece.at)) if axis not in piece.axes]
    if len(free) != piece.axes.count(NONE):
        return piece
    left = iter(free)
    return replace(piece, axes=tuple(next(left) if a == NONE else a for a in piece.axes))


def _joined(pieces: Iterable[Patch], axis: int) -> list[Patch]:
    """Return pieces with neighbours along an axis as one."""
    rows: dict[tuple[Any, ...], list[tuple[int, Patch]]] = {}
    found: list[Patch] = []
    for piece in pieces:
        if axis not in piece.axes:
            found.append(piece)
            continue
        own = piece.axes.index(axis)
        key = (
            piece.operand,
            piece.axes,
            with_value(piece.begin, own, 0),
            with_value(piece.sizes, own, 0),
            with_value(piece.at, axis, 0),
        )
        rows.setdefault(key, []).append((own, piece))
    for row in rows.values():
        row.sort(key=lambda item: item[1].at[axis])
        last: Patch | None = None
        for own, piece in row:
            if last is not None and (
                last.at[axis] + last.sizes[own] == piece.at[axis]
                and last.begin[own] + last.sizes[own] == piece.begin[own]
            ):
                size = last.sizes[own] + piece.sizes[own]
                last = found[-1] = replace(last, sizes=with_value(last.sizes, own, size))
            else:
                last = piece
                found.append(piece)
    return found


def _insert(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*values[:place], value, *values[place:])


def with_value(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    """Return numbers with another one at a place."""
    return (*values[:place], value, *values[place + 1 :])


def _ascends(axes: Sequence[int], sizes: Sequence[int]) -> bool:
    named = [axis for axis, n in zip(axes, sizes, strict=True) if n > 1]
    return named == sorted(named)


def _check(sound: bool) -> None:
    if not sound:
        raise ValueError("the shapes do not go together")


def by_operand(made: Arrangement, rename: Mapping[Any, Any]) -> Arrangement:
    """Return an arrangement with other operands in the place of its own."""
    pieces = tuple(replace(piece, operand=rename[piece.operand]) for piece in made.pieces)
    return Arrangement(made.shape, pieces)
