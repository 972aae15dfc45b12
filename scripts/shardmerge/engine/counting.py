"""Native code that counts: where masks are set, and how often keys have which halves."""

from __future__ import annotations

import itertools

from shardmerge.engine.assembly import INT, LANES, MASK, StepLines, loop_text, splat
from shardmerge.methods.program import Reduction

#: Halves of a key that there are, and tables that are counted in turn: so that equal keys one after
#: the other need not wait for each other.
DIGITS, TABLES = 1 << 16, 4


def masks_text(reduction: Reduction, head: str) -> str:
    """Return a function that counts, for each place of a vector, where masks are set.

    Args:
        reduction: Whose values are masks.
        head: The first line of the function.
    """
    writer = StepLines(reduction)
    entry = writer.entry()
    writer.values()
    carried, done = [], []
    for k, value in enumerate(map(writer.value, reduction.values)):
        ones = writer.new(f"zext {MASK} {value} to {INT}")
        writer.lines.append(f"  %added{k} = add {INT} %sum{k}, {ones}")
        carried.append(f"  %sum{k} = phi {INT} [zeroinitializer, %entry], [%added{k}, %loop]")
        done.append(f"  %at{k} = getelementptr {INT}, ptr %output, i64 {k}")
        done.append(f"  store {INT} %added{k}, ptr %at{k}, align 4")
    return loop_text(head, entry, carried, writer.lines, done)


def digits_text(reduction: Reduction, head: str) -> str:
    """Return a function that counts how often keys have a high half, or a low one after some.

    Args:
        reduction: Whose values are keys.
        head: The first line of the function.
    """
    writer = StepLines(reduction)
    entry = [*writer.entry(), *(line for k in range(len(reduction.values)) for line in _tables(k))]
    writer.values()
    there = _there(writer)
    for k, key in enumerate(map(writer.value, reduction.values)):
        _store_digits(writer, reduction, k, key, there)
    for k, lane in itertools.product(range(len(reduction.values)), range(LANES)):
        _count_digit(writer, k, lane)
    return loop_text(head, entry, (), writer.lines, ())


def _tables(k: int) -> list[str]:
    """Return what is found once for a key: its prefix, a vector's digits, where tables begin."""
    return [
        f"  %prefix{k}.at = getelementptr i32, ptr %prefixes, i64 {k}",
        f"  %prefix{k}.one = load i32, ptr %prefix{k}.at",
        f"  %prefix{k}.first = insertelement {INT} poison, i32 %prefix{k}.one, i64 0",
        f"  %prefix{k} = shufflevector {INT} %prefix{k}.first, {INT} poison, {INT} zeroinitializer",
        f"  %digits{k} = alloca {INT}, align 64",
        *(
            f"  %table{k}.{one} = getelementptr i32, ptr %output, "
            f"i64 {(k * TABLES + one) * (DIGITS + LANES)}"
            for one in range(TABLES)
        ),
    ]


def _there(writer: StepLines) -> str:
    """Write which places of a vector have elements; return the mask's name."""
    left = writer.new("sub i64 %count, %i")
    left = writer.new(f"trunc i64 {left} to i32")
    left = writer.new(f"insertelement {INT} poison, i32 {left}, i64 0")
    left = writer.new(f"shufflevector {INT} {left}, {INT} poison, {INT} zeroinitializer")
    return writer.new(f"icmp slt {INT} <{_lanes(0)}>, {left}")


def _store_digits(writer: StepLines, reduction: Reduction, k: int, key: str, there: str) -> None:
    """Write a vector of digits; what is not counted has one of no use."""
    high, wanted = writer.new(f"lshr {INT} {key}, {splat(16)}"), there
    digit = high
    if reduction.kind == "low":
        digit = writer.new(f"and {INT} {key}, {splat(DIGITS - 1)}")
        wanted = writer.new(f"icmp eq {INT} {high}, %prefix{k}")
        wanted = writer.new(f"and {MASK} {wanted}, {there}")
    digit = writer.new(f"select {MASK} {wanted}, {INT} {digit}, {INT} <{_lanes(DIGITS)}>")
    writer.lines.append(f"  store {INT} {digit}, ptr %digits{k}, align 64")


def _count_digit(writer: StepLines, k: int, lane: int) -> None:
    one = writer.new(f"load i32, ptr {writer.place(f'%digits{k}', 'U32', str(lane))}")
    one = writer.new(f"zext i32 {one} to i64")
    place = writer.place(f"%table{k}.{lane % TABLES}", "U32", one)
    before = writer.new(f"load i32, ptr {place}")
    after = writer.new(f"add i32 {before}, 1")
    writer.lines.append(f"  store i32 {after}, ptr {place}")


def _lanes(begin: int) -> str:
    return ", ".join(f"i32 {begin + lane}" for lane in range(LANES))
