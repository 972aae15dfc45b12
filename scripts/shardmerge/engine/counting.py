"""Native code that counts: where masks are set, and where keys lie; and the greatest values."""

from __future__ import annotations

from shardmerge.engine.assembly import (
    DECLARATIONS,
    DOUBLE,
    INT,
    LANES,
    MASK,
    StepLines,
    loop_text,
    rows_text,
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
    kept = range(len(reduction.values))
    for k, value in enumerate(map(writer.value, reduction.values)):
        # NaN stays
        above = writer.new(f"fcmp ogt {DOUBLE} {value}, %best{k}")
        nan = writer.new(f"fcmp uno {DOUBLE} {value}, {value}")
        taken = writer.new(f"or {MASK} {above}, {nan}")
        writer.new(f"select {MASK} {taken}, {DOUBLE} {value}, {DOUBLE} %best{k}", f"%better{k}")
    least = ", ".join(["double 0xFFF0000000000000"] * LANES)
    entry = [*writer.entry(), "  %rows = load i64, ptr %extra"]
    entry += [f"  %all{k} = mul i64 %rows, {k}" for k in kept]
    carried = [f"  %best{k} = phi {DOUBLE} [<{least}>, %row], [%better{k}, %loop]" for k in kept]
    stored = [line for k in kept for line in (
        f"  %row{k} = add i64 %all{k}, %r",
        f"  %place{k} = getelementptr {DOUBLE}, ptr %output, i64 %row{k}",
        f"  store {DOUBLE} %better{k}, ptr %place{k}, align 8",
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
    carried = [f"  %sum{k} = phi {INT} [%before{k}, %entry], [%added{k}, %next]" for k in kept]
    for k, key in enumerate(map(writer.value, reduction.values)):
        _sort_out(writer, k, key, there)
    lines = [*writer.lines, "  br label %any0", *(line for k in kept for line in _counted(k))]
    return "\n".join([
        head,
        "entry:",
        *entry,
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [0, %entry], [%after, %next]",
        *carried,
        *lines,
        f"any{len(kept)}:",
        "  br label %next",
        "next:",
        f"  %after = add i64 %i, {LANES}",
        "  %again = icmp ult i64 %after, %count",
        "  br i1 %again, label %loop, label %done",
        "done:",
        *(f"  store {INT} %added{k}, ptr %table{k}, align 4" for k in kept),
        "  ret void",
        "}",
        "declare i32 @llvm.cttz.i32(i32, i1)",
        *DECLARATIONS,
    ])  # fmt: skip


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
        entry += [line for place, name in enumerate(("low", "size"), 2 * k + 1)
                  for line in _number(f"%{name}{k}", place)]  # fmt: skip
        entry += [f"  %table{k} = getelementptr i32, ptr %output, i64 {k * LANES}"]
        entry += [f"  %before{k} = load {INT}, ptr %table{k}, align 4"]
    writer.values()
    there, inside = _there(writer), f"{MASK} zeroinitializer"
    for k, key in enumerate(map(writer.value, reduction.values)):
        below = writer.new(f"icmp slt {INT} {key}, %low{k}")
        below = writer.new(f"and {MASK} {below}, {there}")
        ones = writer.new(f"zext {MASK} {below} to {INT}")
        writer.new(f"add {INT} %sum{k}, {ones}", f"%added{k}")
        offset = writer.new(f"sub {INT} {key}, %low{k}")
        own = writer.new(f"icmp ult {INT} {offset}, %size{k}")
        inside = f"{MASK} " + writer.new(f"or {inside}, {own}")
    inside = writer.new(f"and {inside}, {there}")
    whole = f"i{LANES}"
    writer.new(f"bitcast {MASK} {inside} to {whole}", "%bits")
    keys = writer.value(reduction.values[0])
    return "\n".join([
        head,
        "entry:",
        *entry,
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [0, %entry], [%after, %next]",
        "  %number = phi i64 [%held, %entry], [%upto, %next]",
        *(f"  %sum{k} = phi {INT} [%before{k}, %entry], [%added{k}, %next]" for k in kept),
        *writer.lines,
        f"  %any = icmp ne {whole} %bits, 0",
        "  br i1 %any, label %put, label %next",
        "put:",
        f"  store {INT} {keys}, ptr %some, align 64",
        "  br label %one",
        "one:",
        f"  %left = phi {whole} [%bits, %put], [%rest, %one]",
        "  %place = phi i64 [%number, %put], [%more, %one]",
        f"  %lane = call {whole} @llvm.cttz.{whole}({whole} %left, i1 true)",
        f"  %key.at = getelementptr i32, ptr %some, {whole} %lane",
        "  %key = load i32, ptr %key.at",
        "  %place.at = getelementptr i32, ptr %list, i64 %place",
        "  store i32 %key, ptr %place.at",
        "  %more = add i64 %place, 1",
        f"  %less = sub {whole} %left, 1",
        f"  %rest = and {whole} %left, %less",
        f"  %again = icmp ne {whole} %rest, 0",
        "  br i1 %again, label %one, label %next",
        "next:",
        "  %upto = phi i64 [%number, %loop], [%more, %one]",
        f"  %after = add i64 %i, {LANES}",
        "  %on = icmp ult i64 %after, %count",
        "  br i1 %on, label %loop, label %done",
        "done:",
        *(f"  store {INT} %added{k}, ptr %table{k}, align 4" for k in kept),
        "  store i64 %upto, ptr %extra",
        "  ret void",
        "}",
        "declare i32 @llvm.cttz.i32(i32, i1)",
        *DECLARATIONS,
    ])  # fmt: skip


def _number(name: str, place: int) -> list[str]:
    """Return what loads a vector of a number that fits in 32 bits."""
    return [
        f"  {name}.at = getelementptr i64, ptr %extra, i64 {place}",
        f"  {name}.long = load i64, ptr {name}.at",
        f"  {name}.one = trunc i64 {name}.long to i32",
        f"  {name}.first = insertelement {INT} poison, i32 {name}.one, i64 0",
        f"  {name} = shufflevector {INT} {name}.first, {INT} poison, {INT} zeroinitializer",
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
            f"  {own}.first = insertelement {INT} poison, i32 {own}.one, i64 0",
            f"  {own} = shufflevector {INT} {own}.first, {INT} poison, {INT} zeroinitializer",
        ]
    return lines


def _there(writer: StepLines) -> str:
    """Write which places of a vector have elements; return the mask's name."""
    left = writer.new("sub i64 %count, %i")
    left = writer.new(f"trunc i64 {left} to i32")
    left = writer.new(f"insertelement {INT} poison, i32 {left}, i64 0")
    left = writer.new(f"shufflevector {INT} {left}, {INT} poison, {INT} zeroinitializer")
    lanes = ", ".join(f"i32 {lane}" for lane in range(LANES))
    return writer.new(f"icmp slt {INT} <{lanes}>, {left}")


def _sort_out(writer: StepLines, k: int, key: str, there: str) -> None:
    """Write where keys lie: how many below the bracket, and of the others the parts."""
    below = writer.new(f"icmp slt {INT} {key}, %low{k}")
    counted = writer.new(f"and {MASK} {below}, {there}")
    ones = writer.new(f"zext {MASK} {counted} to {INT}")
    writer.new(f"add {INT} %sum{k}, {ones}", f"%added{k}")
    offset = writer.new(f"sub {INT} {key}, %low{k}")
    writer.new(f"lshr {INT} {offset}, %shift{k}", f"%digit{k}")
    inside = writer.new(f"icmp ult {INT} %digit{k}, %parts{k}")
    inside = writer.new(f"select {MASK} {below}, {MASK} zeroinitializer, {MASK} {inside}")
    inside = writer.new(f"and {MASK} {inside}, {there}")
    writer.new(f"bitcast {MASK} {inside} to i{LANES}", f"%bits{k}")


def _counted(k: int) -> list[str]:
    """Return the blocks that count the parts in which some keys of a vector lie."""
    whole = f"i{LANES}"
    return [
        f"any{k}:",
        f"  %some{k} = icmp ne {whole} %bits{k}, 0",
        f"  br i1 %some{k}, label %put{k}, label %any{k + 1}",
        f"put{k}:",
        f"  store {INT} %digit{k}, ptr %digits{k}, align 64",
        f"  br label %count{k}",
        f"count{k}:",
        f"  %left{k} = phi {whole} [%bits{k}, %put{k}], [%rest{k}, %count{k}]",
        f"  %lane{k} = call {whole} @llvm.cttz.{whole}({whole} %left{k}, i1 true)",
        f"  %one{k}.at = getelementptr i32, ptr %digits{k}, {whole} %lane{k}",
        f"  %one{k} = load i32, ptr %one{k}.at",
        f"  %bin{k} = getelementptr i32, ptr %bins{k}, i32 %one{k}",
        f"  %seen{k} = load i32, ptr %bin{k}",
        f"  %more{k} = add i32 %seen{k}, 1",
        f"  store i32 %more{k}, ptr %bin{k}",
        f"  %less{k} = sub {whole} %left{k}, 1",
        f"  %rest{k} = and {whole} %left{k}, %less{k}",
        f"  %again{k} = icmp ne {whole} %rest{k}, 0",
        f"  br i1 %again{k}, label %count{k}, label %any{k + 1}",
    ]
