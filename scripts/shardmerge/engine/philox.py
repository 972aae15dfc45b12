"""Native code for Philox, the generator of random streams: four words of 64 bits for a counter.

Most counters of a turn are computed in vectors, whose products are made of halves of words. A few
are computed one by one meanwhile, by other parts of the processor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from shardmerge.engine.assembly import LANES, vector_of
from shardmerge.engine.native import array_code, place_of
from shardmerge.engine.text import Text
from shardmerge.methods.kernels.keys import DRAWS, Key, RandomStream
from shardmerge.methods.kernels.masks import (
    ElementSpan,
    in_one_array,
)
from shardmerge.methods.symbolic import Made

#: Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405: Philox4x64 with 10 rounds.
_ROUNDS = 10
_FACTORS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_WORD = (1 << 64) - 1
_HALF = (1 << 32) - 1
#: Counters of a turn that are computed in vectors, and one by one. Other numbers took longer.
_TOGETHER, _ALONE = 8, 6
#: Rounds that are written out: with all of them it takes four times as long to make the code.
_WRITTEN = 2
_VECTOR = f"<{_TOGETHER} x i64>"
#: Numbers that may be written beyond those that are asked for.
BEYOND = DRAWS * (_TOGETHER + _ALONE)


class NativeStream(RandomStream):
    """A random stream whose numbers native code makes."""

    def __call__(self, first: int, count: int) -> np.ndarray:
        return self.of_spans([(first, count)])

    def of_spans(self, spans: Sequence[ElementSpan]) -> np.ndarray:
        """Return the numbers of spans of elements, one after the other, as ``keys.draws``."""
        each = _TOGETHER + _ALONE
        firsts, skips = zip(*(divmod(first, DRAWS) for first, _ in spans), strict=True)
        counters = [
            -(-(skip + count) // (DRAWS * each)) * each
            for skip, (_, count) in zip(skips, spans, strict=True)
        ]
        begins = [DRAWS * before for before in itertools.accumulate(counters, initial=0)]
        # of the last numbers too whole vectors can be read
        made = np.empty(begins[-1] + LANES, np.uint32)
        given = np.stack([given_of(self.key, first) for first in firsts])
        run, output, place = array_code(stream_text).run, place_of(made), place_of(given)
        for number, count in enumerate(counters):
            run(output + begins[number] * made.itemsize, [place + number * given.strides[0]], count)
        parts = [
            made[begin + skip : begin + skip + count]
            for begin, skip, (_, count) in zip(begins, skips, spans, strict=False)
        ]
        return in_one_array(parts)


def native_stream(load: Made) -> Made:
    """Return what makes the same numbers, by native code if it is a random stream."""
    return NativeStream(load.key) if isinstance(load, RandomStream) else load


def given_of(key: Key, counter: int = 0) -> np.ndarray:
    """Return what the code of a stream is given: the first counter, and keys; uint64 [21]."""
    return np.array([counter, *_keys(key)], np.uint64)


@lru_cache(16)
def _keys(key: Key) -> list[int]:
    """Return the keys of each round."""
    return [(part + turn * step) & _WORD for turn in range(_ROUNDS)
            for part, step in zip(key, _STEPS, strict=True)]  # fmt: skip


def stream_text() -> str:
    """Return the function that makes the words of counters."""
    text = Text()
    given = _array(text, 0)
    begin = text.load("i64", given, "0")
    text.begin("loop", {})
    at = text.new(f"add i64 {begin}, %loop.i")
    lanes = ", ".join(f"i64 {lane}" for lane in range(_TOGETHER))
    counters = [(_VECTOR, text.new(f"add {_VECTOR} {text.spread(_VECTOR, at)}, <{lanes}>"))]
    counters += [("i64", text.new(f"add i64 {at}, {_TOGETHER + k}")) for k in range(_ALONE)]
    together, *alone = _mixed(text, given, counters)
    _store(text, together, alone)
    text.end("loop", {}, _TOGETHER + _ALONE, "%count")
    return text.function()


def _mixed(text: Text, given: str, counters: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Write all rounds; return the four words of each counter, or vector of them.

    Args:
        text: Gets the lines.
        given: Address of the first counter, and of the keys after it.
        counters: Their types and values.
    """
    carried, words = {}, []
    for number, (kind, counter) in enumerate(counters):
        words.append([f"%word{number}.{k}" for k in range(4)])
        zero = "0" if kind == "i64" else "zeroinitializer"
        carried |= {f"word{number}.{k}": (kind, zero if k else counter) for k in range(4)}
    text.begin("turn", carried)
    for turn in range(_WRITTEN):
        round_ = text.new(f"add i64 %turn.i, {turn}")
        pair = text.new(f"getelementptr [2 x i64], ptr {given}, i64 {round_}")
        keys = [text.load("i64", pair, str(k)) for k in (1, 2)]
        wide = [text.spread(_VECTOR, key) for key in keys]
        words = [
            _round(text, kind, _product, one, keys)
            if kind == "i64"
            else _round(text, kind, _products, one, wide)
            for one, (kind, _) in zip(words, counters, strict=True)
        ]
    made = [word for one in words for word in one]
    after = zip(carried.items(), made, strict=True)
    text.end("turn", {name: (kind, word) for (name, (kind, _)), word in after}, _WRITTEN,
             str(_ROUNDS))  # fmt: skip
    return words


#: Writes the low and the high word of products: (text, words, factor).
_Multiply = Callable[[Text, str, int], tuple[str, str]]


def _round(text: Text, kind: str, multiply: _Multiply, words: list[str], keys: list[str]) -> list:
    """Write a round: of two words products, with whose high halves the others are mixed."""
    (low, high), (other_low, other_high) = (
        multiply(text, word, factor) for word, factor in zip(words[::2], _FACTORS, strict=True)
    )
    mixed = []
    for product, word, key in zip((other_high, high), words[1::2], keys, strict=True):
        value = text.new(f"xor {kind} {product}, {word}")
        mixed.append(text.new(f"xor {kind} {value}, {key}"))
    return [mixed[0], other_low, mixed[1], low]


def _product(text: Text, word: str, factor: int) -> tuple[str, str]:
    wide = text.new(f"zext i64 {word} to i128")
    wide = text.new(f"mul i128 {wide}, {factor}")
    high = text.new(f"lshr i128 {wide}, 64")
    return text.new(f"trunc i128 {wide} to i64"), text.new(f"trunc i128 {high} to i64")


def _products(text: Text, words: str, factor: int) -> tuple[str, str]:
    """Write products of words by those of their halves, which processors have for vectors."""

    def do(name: str, value: str, other: str | int) -> str:
        other = other if isinstance(other, str) else vector_of(other, "i64", _TOGETHER)
        return text.new(f"{name} {_VECTOR} {value}, {other}")

    low, high = do("and", words, _HALF), do("lshr", words, 32)
    least, middle = do("mul", low, factor & _HALF), do("mul", low, factor >> 32)
    other, most = do("mul", high, factor & _HALF), do("mul", high, factor >> 32)
    other = do("add", other, do("lshr", least, 32))
    middle = do("add", middle, do("and", other, _HALF))
    most = do("add", do("add", most, do("lshr", other, 32)), do("lshr", middle, 32))
    return do("or", do("shl", middle, 32), do("and", least, _HALF)), most


def _store(text: Text, together: list[str], alone: list[list[str]]) -> None:
    """Write that the words of each counter are stored one after the other."""
    count, wide = 2 * _TOGETHER, f"<{2 * _TOGETHER} x i64>"
    places = ", ".join(f"i32 {k}" for k in range(count))
    pairs = [
        text.new(f"shufflevector {_VECTOR} {a}, {_VECTOR} {b}, <{count} x i32> <{places}>")
        for a, b in (together[:2], together[2:])
    ]
    places = ", ".join(f"i32 {k + part * _TOGETHER}" for k in range(_TOGETHER) for part in range(4))
    words = text.new(
        f"shufflevector {wide} {pairs[0]}, {wide} {pairs[1]}, <{2 * count} x i32> <{places}>"
    )
    first = text.new("shl i64 %loop.i, 2")
    text.store(f"<{2 * count} x i64>", words, "%output", first)
    for number, one in enumerate(alone, _TOGETHER):
        for k, word in enumerate(one, 4 * number):
            text.store("i64", word, "%output", text.new(f"add i64 {first}, {k}"))


def _array(text: Text, number: int) -> str:
    """Write the address of an array that the function is given."""
    return text.load("ptr", "%leaves", str(number), align=8)
