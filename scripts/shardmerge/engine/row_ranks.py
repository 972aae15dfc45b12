"""Native code for ranks within rows: a stable sort of keys by 11 bits a pass, least digit first.

The last pass tells where each element goes, which is its rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardmerge.engine.assembly import next_row
from shardmerge.engine.native import array_code

_BITS = 11
_BUCKETS = 1 << _BITS


def native_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks along rows, [rows, length], as ``kernels.ranks`` finds them.

    Args:
        values: float32, not negative.
    """
    rows = np.ascontiguousarray(values)
    ranks = np.empty(rows.shape, np.uint32)
    length = rows.shape[-1]
    # where elements lie after the first and the second pass; counts of the three digits
    rooms = [np.empty(length, np.uint32) for _ in range(2)] + [np.empty(3 * _BUCKETS, np.uint32)]
    array_code(ranks_text)(ranks, [rows, *rooms], length, [rows.size // max(length, 1)])
    return ranks


def ranks_text() -> str:
    """Return the function in LLVM's assembly language."""
    loads = [
        line
        for k, name in enumerate(("keys", "a", "b", "counts"))
        for line in (
            f"  %{name}.at = getelementptr ptr, ptr %leaves, i64 {k}",
            f"  %{name}.all = load ptr, ptr %{name}.at",
        )
    ]
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %n, ptr %constants, ptr %number) {",
        "entry:",
        *loads,
        "  %rows = load i64, ptr %number",
        "  br label %row",
        "row:",
        "  %r = phi i64 [0, %entry], [%r.next, %end]",
        "  %offset = mul i64 %r, %n",
        "  %keys = getelementptr i32, ptr %keys.all, i64 %offset",
        "  %ranks = getelementptr i32, ptr %output, i64 %offset",
        f"  call void @llvm.memset.p0.i64(ptr %counts.all, i8 0, i64 {12 * _BUCKETS}, i1 false)",
        "  br label %count",
        *_loop("count", "%n", [*_key("count", "%count.i"),
                               *(line for d in range(3) for line in _counted("count", d)[0])],
               "row", "sum0"),
        *(line for d in range(3) for line in _starts(d)),
        *_loop("first", "%n", [*_key("first", "%first.i"), *_placed("first", 0, "%a.all")],
               "sum2", "second"),
        *_loop("second", "%n", [*_element("second", "%a.all"), *_key("second", "%second.e"),
                                *_placed("second", 1, "%b.all")], "first", "third"),
        *_loop("third", "%n", [*_element("third", "%b.all"), *_key("third", "%third.e"),
                               *_ranked("third")], "second", "end"),
        *next_row("end"),
        "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)",
    ])  # fmt: skip


def _loop(name: str, count: str, body: Sequence[str], before: str, after: str) -> list[str]:
    """Return a loop over at least one number, between two blocks."""
    return [
        f"{name}:",
        f"  %{name}.i = phi i64 [0, %{before}], [%{name}.next, %{name}]",
        *body,
        f"  %{name}.next = add i64 %{name}.i, 1",
        f"  %{name}.more = icmp ult i64 %{name}.next, {count}",
        f"  br i1 %{name}.more, label %{name}, label %{after}",
    ]


def _element(name: str, source: str) -> list[str]:
    """Return the lines that load which element comes next."""
    return [
        f"  %{name}.e.at = getelementptr i32, ptr {source}, i64 %{name}.i",
        f"  %{name}.e.short = load i32, ptr %{name}.e.at",
        f"  %{name}.e = zext i32 %{name}.e.short to i64",
    ]


def _key(name: str, element: str) -> list[str]:
    return [
        f"  %{name}.key.at = getelementptr i32, ptr %keys, i64 {element}",
        f"  %{name}.key = load i32, ptr %{name}.key.at",
    ]


def _counted(name: str, digit: int) -> tuple[list[str], str]:
    """Return the lines that count a key's digit one up, and what the count was."""
    own = f"%{name}.d{digit}"
    return [
        f"{own}.high = lshr i32 %{name}.key, {digit * _BITS}",
        f"{own}.low = and i32 {own}.high, {_BUCKETS - 1}",
        f"{own}.place = add i32 {own}.low, {digit * _BUCKETS}",
        f"{own}.wide = zext i32 {own}.place to i64",
        f"{own}.at = getelementptr i32, ptr %counts.all, i64 {own}.wide",
        f"{own} = load i32, ptr {own}.at",
        f"{own}.more = add i32 {own}, 1",
        f"  store i32 {own}.more, ptr {own}.at",
    ], own


def _starts(digit: int) -> list[str]:
    """Return the loop that makes of a digit's counts where its first element goes."""
    name = f"sum{digit}"
    before = f"sum{digit - 1}" if digit else "count"
    after = f"sum{digit + 1}" if digit < 2 else "first"
    first, *rest = _loop(name, str(_BUCKETS), [
        f"  %{name}.total = phi i32 [0, %{before}], [%{name}.upto, %{name}]",
        f"  %{name}.place = add i64 %{name}.i, {digit * _BUCKETS}",
        f"  %{name}.at = getelementptr i32, ptr %counts.all, i64 %{name}.place",
        f"  %{name}.own = load i32, ptr %{name}.at",
        f"  store i32 %{name}.total, ptr %{name}.at",
        f"  %{name}.upto = add i32 %{name}.total, %{name}.own",
    ], before, after)  # fmt: skip
    return [first, *rest]


def _placed(name: str, digit: int, target: str) -> list[str]:
    """Return the lines that put an element at its place by a digit."""
    lines, place = _counted(name, digit)
    element = f"%{name}.i" if digit == 0 else f"%{name}.e"
    return [
        *lines,
        f"  %{name}.to = zext i32 {place} to i64",
        f"  %{name}.to.at = getelementptr i32, ptr {target}, i64 %{name}.to",
        f"  %{name}.short = trunc i64 {element} to i32",
        f"  store i32 %{name}.short, ptr %{name}.to.at",
    ]


def _ranked(name: str) -> list[str]:
    lines, place = _counted(name, 2)
    return [
        *lines,
        f"  %{name}.to = getelementptr i32, ptr %ranks, i64 %{name}.e",
        f"  store i32 {place}, ptr %{name}.to",
    ]
