"""Masks of the elements that chance alone chooses, by native code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardmerge.engine.assembly import INT, LANES, MASK
from shardmerge.engine.chance_turns import AT_ONCE, ChanceTurns, turns_of
from shardmerge.engine.native import array_code, place_of
from shardmerge.engine.text import Text
from shardmerge.methods.kernels.keys import RandomStream
from shardmerge.methods.kernels.masks import ElementSpan, KeptMasks, SpanMasks, bits_of, numbers_of
from shardmerge.methods.passes import Chances, Masks

_BYTE = 8
_GREATEST = (1 << 32) - 1


def chosen_by_chance(wanted: Chances, count: int, *, little: bool = False) -> list[Masks]:
    """Return the masks of a tensor's elements that are chosen by chance; they are kept.

    Args:
        wanted: What is chosen.
        count: Elements.
        little: Whether few are asked for.
    """
    drawn, kinds = _Drawn(wanted), len(wanted.bounds)
    kept = SpanMasks(drawn, LANES, count) if little else KeptMasks(drawn, AT_ONCE, count)
    return kept.masks(kinds)


class _Drawn:
    """Finds which elements are chosen: those whose numbers are below a bound."""

    def __init__(self, wanted: Chances) -> None:
        self._wanted = list(zip(wanted.numbers, wanted.bounds, strict=True))
        self._drawn = [
            k
            for k, (numbers, bound) in enumerate(self._wanted)
            if isinstance(numbers, RandomStream) and bound > 0
        ]
        self._turns = ChanceTurns(
            array_code(below_text),
            [np.array([min(self._wanted[k][1] - 1, _GREATEST)], np.uint32) for k in self._drawn],
            [self._wanted[k][0].key for k in self._drawn],
            bits=1,
        )

    def __call__(self, spans: Sequence[ElementSpan]) -> list[np.ndarray]:
        """Return the bits of spans of elements, one after the other, of each kind."""
        size = -(-sum(count for _, count in spans) // _BYTE)
        # a vector's bits may be written beyond
        found = np.empty((len(self._drawn), size + LANES // _BYTE), np.uint8)
        if self._drawn:
            left = np.empty((len(self._drawn), 1), np.uint8)
            self._turns.run(turns_of(spans), place_of(found), found.strides[0], left, None)
        drawn = dict(zip(self._drawn, found[:, :size], strict=True))
        return [
            drawn[k] if k in drawn else bits_of(numbers_of(numbers, spans) < bound)
            for k, (numbers, bound) in enumerate(self._wanted)
        ]


def below_text() -> str:
    """Return the function that compares numbers with the greatest that is chosen."""
    text = Text()
    numbers, most = (text.load("ptr", "%leaves", str(k), align=8) for k in range(2))
    most = text.spread(INT, text.new(f"load i32, ptr {most}"))
    text.begin("loop", {})
    chosen = text.new(f"icmp ule {INT} {text.load(INT, numbers, '%loop.i')}, {most}")
    bits = text.new(f"bitcast {MASK} {chosen} to i{LANES}")
    byte = text.new("lshr i64 %loop.i, 3")
    text.lines.append(f"  store i{LANES} {bits}, ptr {text.at('i8', '%output', byte)}, align 1")
    text.end("loop", {}, LANES, "%count")
    return text.function()
