"""Native code that makes random numbers and chooses by them at once, some elements in each turn.

What a turn makes stays in the processor's cache, in room that is there once for each thread: keys
of values, where what is chosen depends on them, and numbers. One call does many turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shardmerge.engine.assembly import LANES
from shardmerge.engine.native import ArrayCode, array_code, place_of
from shardmerge.engine.philox import BEYOND, given_of, stream_text
from shardmerge.engine.scratch import scratch
from shardmerge.engine.text import Text
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.keys import DRAWS, Key

#: Elements of a turn, if a row has no more.
TOGETHER = 1 << 14
#: Elements whose masks are found together.
AT_ONCE = 4 * BLOCK
#: The first element of a turn, its rows, and the elements of each: int64 [turns, 3].
Turns = np.ndarray


@dataclass(frozen=True)
class ReadValues:
    """Values whose elements lie in memory, one turn's after the other.

    Args:
        code: Address of the code that makes their keys, [values, elements].
        leaves: Address of the first element of each leaf, of which whole vectors can be read.
        sizes: Bytes of an element of each leaf.
        constants: That the code needs.
    """

    code: int
    leaves: Sequence[int]
    sizes: Sequence[int]
    constants: Sequence[float]


class ChanceTurns:
    """Chooses elements by random numbers, one kind of choice beside the other.

    Args:
        choose: Code that chooses: it is given numbers, the next argument, keys of values, a byte
            for each row, and room.
        most: Of each kind the greatest numbers that are chosen, uint32.
        streams: Of each kind the key of its random stream.
        bits: That are written for an element.
        room: Numbers of 32 bits that the code needs to work in.
        buckets: What the code is told besides the number of rows.
    """

    def __init__(
        self,
        choose: ArrayCode,
        most: Sequence[np.ndarray],
        streams: Sequence[Key],
        bits: int,
        room: int = 0,
        buckets: int = 0,
    ) -> None:
        self._choose, self._most, self._bits = choose, most, bits
        self._given = np.array([given_of(key) for key in streams])
        self._room, self._buckets = room, buckets

    def run(
        self, turns: Turns, output: int, stride: int, left: np.ndarray, values: ReadValues | None
    ) -> None:
        """Choose.

        Args:
            turns: Which elements.
            output: Address of what is written of the first kind. A vector more may be written.
            stride: Bytes from there to the next kind's.
            left: What the code says of rows, uint8 [kinds, rows].
            values: By whose ranks it chooses.
        """
        kinds, most = len(self._most), int((turns[:, 1] * turns[:, 2]).max())
        whole = -(-most // LANES) * LANES
        keys = scratch("keys", (kinds * whole if values else 0) + LANES, np.uint32)
        numbers = scratch("numbers", whole + BEYOND + DRAWS + LANES, np.uint32)
        room = scratch("room", max(self._room, 1), np.uint32)
        given = self._given.copy()  # the stream's code is told its first counter there
        rows = np.array(
            [
                (
                    place_of(given) + k * given.strides[0],
                    place_of(greatest),
                    place_of(left) + k * left.strides[0],
                    output + k * stride,
                )
                for k, greatest in enumerate(self._most)
            ],
            np.int64,
        )
        told = np.array([0, self._buckets], np.int64)
        arguments = np.array([0, 0, 0, 0, place_of(room)], np.int64)
        stream = array_code(stream_text)
        arrays = [stream.address, self._choose.address, place_of(keys), place_of(numbers)]
        arrays += map(place_of, (rows, turns, told, arguments))
        more, constants = [kinds, self._bits], ()
        if values:
            leaves = np.array(values.leaves, np.int64)
            sizes = np.array(values.sizes, np.int64)
            arrays += [values.code, place_of(leaves), place_of(sizes)]
            more.append(len(leaves))
            constants = values.constants
        code = array_code(turns_text, values is not None, effort=0)
        code.run(0, arrays, len(turns), more, constants)


def turns_of(spans: Sequence[tuple[int, int]], length: int | None = None) -> Turns:
    """Return the turns of spans of elements.

    Args:
        spans: The first element of each, and their number.
        length: Elements of a row, of which all are asked for; None if there are no rows.
    """
    step = TOGETHER if length is None else max(1, TOGETHER // length) * length
    parts = [
        (at, min(step, first + count - at))
        for first, count in spans
        for at in range(first, first + count, step)
    ]
    rows = [(at, 1, size) if length is None else (at, size // length, length) for at, size in parts]
    return np.array(rows, np.int64)


def turns_text(ranked: bool) -> str:
    """Return the function that makes the numbers of each turn's elements, and chooses.

    Args:
        ranked: Whether by values, whose keys are made first.
    """
    text = Text()
    names = ["stream", "choose", "keys", "numbers", "kinds", "turns", "told", "arguments"]
    names += ["values", "leaves.now", "sizes"] if ranked else []
    for k, name in enumerate(names):
        text.lines.append(f"  %{name} = load ptr, ptr {text.at('ptr', '%leaves', str(k))}")
    kinds, bits = (text.load("i64", "%more", str(k), 8) for k in range(2))
    leaves = text.load("i64", "%more", "2", 8) if ranked else ""
    text.begin("turn", {})
    turn = text.at("[3 x i64]", "%turns", "%turn.i")
    first, rows, length = (text.load("i64", turn, str(k), 8) for k in range(3))
    count = text.new(f"mul i64 {rows}, {length}")
    whole = text.new(f"and i64 {text.new(f'add i64 {count}, {LANES - 1}')}, {-LANES}")
    if ranked:
        _call(text, "%values", "%keys", "%leaves.now", whole, "%constants", "null")
        text.begin("leaf", {})
        moved = text.new(f"mul i64 {count}, {text.load('i64', '%sizes', '%leaf.i', 8)}")
        _move(text, text.at("i64", "%leaves.now", "%leaf.i"), moved)
        text.end("leaf", {}, 1, leaves)
    skip = text.new(f"and i64 {first}, {DRAWS - 1}")
    end = text.new(f"add i64 {text.new(f'add i64 {skip}, {count}')}, {DRAWS - 1}")
    counters = text.new(f"udiv i64 {end}, {DRAWS}")
    counter = text.new(f"udiv i64 {first}, {DRAWS}")
    text.store("i64", rows, "%told", "0", 8)
    text.store("ptr", text.at("i32", "%numbers", skip), "%arguments", "0", 8)
    written = text.new(f"udiv i64 {text.new(f'mul i64 {count}, {bits}')}, 8")
    text.begin("kind", {})
    kind = text.at("[4 x i64]", "%kinds", "%kind.i")
    given, most, left, output = (text.load("ptr", kind, str(k), 8) for k in range(4))
    text.store("i64", counter, given, "0", 8)
    _call(text, "%stream", "%numbers", kind, counters, "null", "null")
    keys = text.at("i32", "%keys", text.new(f"mul i64 %kind.i, {whole}"))
    for k, address in enumerate((most, keys, left), 1):
        text.store("ptr", address, "%arguments", str(k), 8)
    _call(text, "%choose", output, "%arguments", length, "null", "%told")
    _move(text, text.at("i64", kind, "2"), rows)
    _move(text, text.at("i64", kind, "3"), written)
    text.end("kind", {}, 1, kinds)
    text.end("turn", {}, 1, "%count")
    return text.function()


def _call(text: Text, code: str, *given: str) -> None:
    kinds = ("ptr", "ptr", "i64", "ptr", "ptr")
    arguments = ", ".join(f"{kind} {one}" for kind, one in zip(kinds, given, strict=True))
    text.lines.append(f"  call void {code}({arguments})")


def _move(text: Text, place: str, by: str) -> None:
    """Write that the number at a place grows."""
    before = text.new(f"load i64, ptr {place}")
    text.lines.append(f"  store i64 {text.new(f'add i64 {before}, {by}')}, ptr {place}")
