"""Native code that counts: where masks are set, and where keys lie; and the greatest values."""

from __future__ import annotations

from collections.abc import Sequence

from shardmerge.engine.assembly import (
    DOUBLE,
    FLOAT,
    INT,
    LANES,
    MASK,
    StepLines,
    element,
    inserted,
    loop_text,
    repeated,
    rows_text,
    short_lines,
    spread_lines,
)
from shardmerge.methods.program import Reduction


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


def maxima_text(reduction: Reduction, head: str) -> str:
    """Return a function that finds the greatest values in each place of a row's vectors.

    Args:
        reduction: Whose values are of float64.
        head: The first line of the function.
    """
    writer = StepLines(reduction)
    writer.values("%at")
    kinds, carried = [], []
    for k, number in enumerate(reduction.values):
        name, (narrow, *_) = reduction.steps[number - len(reduction.leaves)]
        # float32 are compared as such
        value = writer.value(narrow if name == "wide" else number)
        kind = FLOAT if name == "wide" else DOUBLE
        # NaN stays
        above = writer.new(f"fcmp ogt {kind} {value}, %best{k}")
        nan = writer.new(f"fcmp uno {kind} {value}, {value}")
        taken = writer.new(f"or {MASK} {above}, {nan}")
        writer.new(f"select {MASK} {taken}, {kind} {value}, {kind} %best{k}", f"%better{k}")
        least = ", ".join([f"{element(kind)} 0xFFF0000000000000"] * LANES)
        carried.append(f"  %best{k} = phi {kind} [<{least}>, %row], [%better{k}, %loop]")
        kinds.append(kind)
    entry = [*writer.entry(), "  %rows = load i64, ptr %extra"]
    entry += [f"  %all{k} = mul i64 %rows, {k}" for k in range(len(kinds))]
    stored = [line for k, kind in enumerate(kinds) for line in (
        f"  %row{k} = add i64 %all{k}, %r",
        f"  %place{k} = getelementptr {DOUBLE}, ptr %output, i64 %row{k}",
        f"  %wide{k} = {'fpext' if kind == FLOAT else 'bitcast'} {kind} %better{k} to {DOUBLE}",
        f"  store {DOUBLE} %wide{k}, ptr %place{k}, align 8",
    )]  # fmt: skip
    after = ["fold0:", *stored, "  br label %end"]
    return rows_text(head, entry, (), carried, writer.lines, "%count", after)


def keys_text(reduction: Reduction, head: str) -> str:
    """Return a function that counts how many keys lie below brackets, and in each part of them.

    What lies in brackets is little of all: only its places are gone through, one by one.

    Args:
        reduction: Whose values are keys.
        head: The first line of the function.
    """
    writer = StepLines(reduction)
    kept = range(len(reduction.values))
    entry = [*writer.entry(), *(line for k in kept for line in _bracket(k))]
    writer.values()
    there = _there(writer)
    for k, key in enumerate(map(writer.value, reduction.values)):
        _sort_out(writer, k, key, there)
    end = f"any{len(kept)}"
    lines = [*writer.lines, "  br label %any0", *(line for k in kept for line in _counted(k))]
    return loop_text(head, entry, _summed(kept, end), [*lines, f"{end}:"], _stored(kept), end)


def caught_text(reduction: Reduction, head: str) -> str:
    """Return a function that counts how many keys lie below brackets, and keeps those in them.

    Args:
        reduction: Whose values are keys, for each bracket once.
        head: The first line of the function. %output has how many lie below each bracket, then the
            keys that are kept; %extra 64 bits each of how many are, and of each bracket the least
            key and how many there may be.
    """
    writer = StepLines(reduction)
    kept = range(len(reduction.values))
    entry = [*writer.entry(), f"  %some = alloca {INT}, align 64"]
    entry += [f"  %list = getelementptr i32, ptr %output, i64 {len(kept) * LANES}"]
    entry += ["  %held = load i64, ptr %extra"]
    for k in kept:
        for place, name in enumerate((f"%low{k}", f"%size{k}"), 2 * k + 1):
            entry += [
                *short_lines(f"{name}.one", "%extra", place),
                *spread_lines(name, f"{name}.one"),
            ]
        entry += [f"  %table{k} = getelementptr i32, ptr %output, i64 {k * LANES}"]
        entry += [f"  %before{k} = load {INT}, ptr %table{k}, align 4"]
    writer.values()
    there, inside = _there(writer), f"{MASK} zeroinitializer"
    for k, key in enumerate(map(writer.value, reduction.values)):
        offset, _ = _below(writer, k, key, there)
        own = writer.new(f"icmp ult {INT} {offset}, %size{k}")
        inside = f"{MASK} " + writer.new(f"or {inside}, {own}")
    inside = writer.new(f"and {inside}, {there}")
    whole = f"i{LANES}"
    writer.new(f"bitcast {MASK} {inside} to {whole}", "%bits")
    keys = writer.value(reduction.values[0])
    carried = ["  %number = phi i64 [%held, %entry], [%upto, %next]", *_summed(kept, "next")]
    place = ["  %place = phi i64 [%number, %put], [%place.next, %one]"]
    put = [
        f"  %key.at = getelementptr i32, ptr %some, {whole} %one.lane",
        "  %key = load i32, ptr %key.at",
        "  %place.at = getelementptr i32, ptr %list, i64 %place",
        "  store i32 %key, ptr %place.at",
        "  %place.next = add i64 %place, 1",
    ]
    lines = [
        *writer.lines,
        f"  %any = icmp ne {whole} %bits, 0",
        "  br i1 %any, label %put, label %next",
        "put:",
        f"  store {INT} {keys}, ptr %some, align 64",
        "  br label %one",
        *_each_bit("one", "%bits", "put", put, "next", place),
        "next:",
        "  %upto = phi i64 [%number, %loop], [%place.next, %one]",
    ]
    done = [*_stored(kept), "  store i64 %upto, ptr %extra"]
    return loop_text(head, entry, carried, lines, done, "next")


def _summed(kept: range, end: str) -> list[str]:
    """Return what goes on from turn to turn: for each value how many keys lie below its bracket."""
    return [f"  %sum{k} = phi {INT} [%before{k}, %entry], [%added{k}, %{end}]" for k in kept]


def _stored(kept: range) -> list[str]:
    return [f"  store {INT} %added{k}, ptr %table{k}, align 4" for k in kept]


def _each_bit(
    name: str, bits: str, before: str, body: Sequence[str], after: str, carried: Sequence[str] = ()
) -> list[str]:
    """Return a block that goes through the places of set bits, of which there is one at least.

    Args:
        name: Of the block; a bit's place is %NAME.lane.
        bits: Of the places.
        before, after: The blocks before and behind it.
        body: What is done for each place.
        carried: Values that go from one place to the next.
    """
    whole, own = f"i{LANES}", f"%{name}"
    return [
        f"{name}:",
        f"  {own}.left = phi {whole} [{bits}, %{before}], [{own}.rest, {own}]",
        *carried,
        f"  {own}.lane = call {whole} @llvm.cttz.{whole}({whole} {own}.left, i1 true)",
        *body,
        f"  {own}.less = sub {whole} {own}.left, 1",
        f"  {own}.rest = and {whole} {own}.left, {own}.less",
        f"  {own}.again = icmp ne {whole} {own}.rest, 0",
        f"  br i1 {own}.again, label {own}, label %{after}",
    ]


def _bracket(k: int) -> list[str]:
    """Return what is found once for a value: its bracket, and where is counted."""
    lines = [
        f"  %offset{k}.at = getelementptr i32, ptr %extra, i64 {4 * k + 3}",
        f"  %offset{k} = load i32, ptr %offset{k}.at",
        f"  %table{k} = getelementptr i32, ptr %output, i32 %offset{k}",
        f"  %bins{k} = getelementptr i32, ptr %table{k}, i64 {LANES}",
        f"  %before{k} = load {INT}, ptr %table{k}, align 4",
        f"  %digits{k} = alloca {INT}, align 64",
    ]
    for place, name in enumerate(("low", "shift", "parts")):
        own = f"%{name}{k}"
        lines += [
            f"  {own}.at = getelementptr i32, ptr %extra, i64 {4 * k + place}",
            f"  {own}.one = load i32, ptr {own}.at",
            *spread_lines(own, f"{own}.one"),
        ]
    return lines


def _there(writer: StepLines) -> str:
    """Write which places of a vector have elements; return the mask's name."""
    left = writer.new("sub i64 %count, %i")
    left = writer.new(f"trunc i64 {left} to i32")
    left = writer.new(repeated(writer.new(inserted(left))))
    lanes = ", ".join(f"i32 {lane}" for lane in range(LANES))
    return writer.new(f"icmp slt {INT} <{lanes}>, {left}")


def _below(writer: StepLines, k: int, key: str, there: str) -> tuple[str, str]:
    """Write how many keys lie below a bracket; return how far others are in it, and which do."""
    below = writer.new(f"icmp slt {INT} {key}, %low{k}")
    counted = writer.new(f"and {MASK} {below}, {there}")
    ones = writer.new(f"zext {MASK} {counted} to {INT}")
    writer.new(f"add {INT} %sum{k}, {ones}", f"%added{k}")
    return writer.new(f"sub {INT} {key}, %low{k}"), below


def _sort_out(writer: StepLines, k: int, key: str, there: str) -> None:
    """Write where keys lie: how many below the bracket, and of the others the parts."""
    offset, below = _below(writer, k, key, there)
    writer.new(f"lshr {INT} {offset}, %shift{k}", f"%digit{k}")
    inside = writer.new(f"icmp ult {INT} %digit{k}, %parts{k}")
    inside = writer.new(f"select {MASK} {below}, {MASK} zeroinitializer, {MASK} {inside}")
    inside = writer.new(f"and {MASK} {inside}, {there}")
    writer.new(f"bitcast {MASK} {inside} to i{LANES}", f"%bits{k}")


def _counted(k: int) -> list[str]:
    """Return the blocks that count the parts in which some keys of a vector lie."""
    whole, name = f"i{LANES}", f"count{k}"
    body = [
        f"  %one{k}.at = getelementptr i32, ptr %digits{k}, {whole} %{name}.lane",
        f"  %one{k} = load i32, ptr %one{k}.at",
        f"  %bin{k} = getelementptr i32, ptr %bins{k}, i32 %one{k}",
        f"  %seen{k} = load i32, ptr %bin{k}",
        f"  %more{k} = add i32 %seen{k}, 1",
        f"  store i32 %more{k}, ptr %bin{k}",
    ]
    return [
        f"any{k}:",
        f"  %some{k} = icmp ne {whole} %bits{k}, 0",
        f"  br i1 %some{k}, label %put{k}, label %any{k + 1}",
        f"put{k}:",
        f"  store {INT} %digit{k}, ptr %digits{k}, align 64",
        f"  br label %{name}",
        *_each_bit(name, f"%bits{k}", f"put{k}", body, f"any{k + 1}"),
    ]
