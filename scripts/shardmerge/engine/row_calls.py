"""Native code that calls other native code row by row, and brings values to one number."""

from __future__ import annotations

from shardmerge.engine.assembly import next_row

#: What a call has: its code, where it writes and how far that moves from row to row, leaves, how
#: far they move, their number, elements, constants, the one that is the row's first element, more.
FIELDS = 10


def driver_text() -> str:
    """Return a function that makes calls, and moves them on, row by row."""
    loads = [
        line
        for k, (name, code) in enumerate(zip(
            ("function", "out", "out.move", "leaves", "moves", "number", "size", "constants",
             "first", "more"),
            ("ptr", "ptr", "i64", "ptr", "ptr", "i64", "i64", "ptr", "ptr", "ptr"), strict=True,
        ))
        for line in (
            f"  %{name}.at = getelementptr i64, ptr %call, i64 {k}",
            f"  %{name} = load {code}, ptr %{name}.at",
        )
    ]  # fmt: skip
    return "\n".join([
        "define void @merge(ptr %calls, ptr %numbers, i64 %rows, ptr %none, ptr %nothing) {",
        "entry:",
        "  %all = load i64, ptr %numbers",
        "  %length.at = getelementptr i64, ptr %numbers, i64 1",
        "  %length.whole = load i64, ptr %length.at",
        "  %length = sitofp i64 %length.whole to double",
        "  br label %row",
        "row:",
        "  %r = phi i64 [0, %entry], [%r.next, %row.end]",
        "  br label %one",
        "one:",
        "  %c = phi i64 [0, %row], [%c.next, %one.end]",
        f"  %offset = mul i64 %c, {FIELDS}",
        "  %call = getelementptr i64, ptr %calls, i64 %offset",
        *loads,
        "  call void %function(ptr %out, ptr %leaves, i64 %size, ptr %constants, ptr %more)",
        "  %out.next = getelementptr i8, ptr %out, i64 %out.move",
        "  store ptr %out.next, ptr %out.at",
        "  %first.before = load double, ptr %first",
        "  %first.next = fadd double %first.before, %length",
        "  store double %first.next, ptr %first",
        "  %some = icmp ugt i64 %number, 0",
        "  br i1 %some, label %move, label %one.end",
        "move:",
        "  %j = phi i64 [0, %one], [%j.next, %move]",
        "  %leaf.at = getelementptr ptr, ptr %leaves, i64 %j",
        "  %move.at = getelementptr i64, ptr %moves, i64 %j",
        "  %leaf = load ptr, ptr %leaf.at",
        "  %by = load i64, ptr %move.at",
        "  %leaf.next = getelementptr i8, ptr %leaf, i64 %by",
        "  store ptr %leaf.next, ptr %leaf.at",
        "  %j.next = add i64 %j, 1",
        "  %j.more = icmp ult i64 %j.next, %number",
        "  br i1 %j.more, label %move, label %one.end",
        "one.end:",
        "  %c.next = add i64 %c, 1",
        "  %c.more = icmp ult i64 %c.next, %all",
        "  br i1 %c.more, label %one, label %row.end",
        *next_row("row.end"),
    ])  # fmt: skip


def last_text(kind: str, code: str = "F64") -> str:
    """Return a function that brings values to one number by halves.

    Args:
        kind: ``sums`` or ``maxima``.
        code: Of the values' type, F64 or F32; the number is of float64.
    """
    number, found = "double", ["  %number = load double, ptr %x"]
    if code == "F32":
        number = "float"
        found = ["  %one = load float, ptr %x", "  %number = fpext float %one to double"]
    combined = [f"  %both = fadd {number} %a, %b"]
    if kind == "maxima":
        combined = [  # NaN stays
            f"  %above = fcmp ogt {number} %b, %a",
            f"  %nan = fcmp uno {number} %b, %b",
            "  %taken = or i1 %above, %nan",
            f"  %both = select i1 %taken, {number} %b, {number} %a",
        ]
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %none, ptr %more) {",
        "entry:",
        "  %values = load ptr, ptr %leaves",
        "  %kept = load i64, ptr %more",
        "  %stride.at = getelementptr i64, ptr %more, i64 1",
        "  %stride = load i64, ptr %stride.at",
        "  %apart.at = getelementptr i64, ptr %more, i64 2",
        "  %apart = load i64, ptr %apart.at",
        "  br label %value",
        "value:",
        "  %k = phi i64 [0, %entry], [%k.next, %written]",
        "  %offset = mul i64 %k, %stride",
        f"  %x = getelementptr {number}, ptr %values, i64 %offset",
        "  br label %level",
        "level:",
        "  %n = phi i64 [%count, %value], [%upper, %level.end]",
        "  %half = lshr i64 %n, 1",
        "  %upper = sub i64 %n, %half",
        "  %some = icmp ugt i64 %half, 0",
        "  br i1 %some, label %add, label %written",
        "add:",
        "  %i = phi i64 [0, %level], [%i.next, %add]",
        "  %far = add i64 %i, %upper",
        f"  %a.at = getelementptr {number}, ptr %x, i64 %i",
        f"  %b.at = getelementptr {number}, ptr %x, i64 %far",
        f"  %a = load {number}, ptr %a.at",
        f"  %b = load {number}, ptr %b.at",
        *combined,
        f"  store {number} %both, ptr %a.at",
        "  %i.next = add i64 %i, 1",
        "  %i.more = icmp ult i64 %i.next, %half",
        "  br i1 %i.more, label %add, label %level.end",
        "level.end:",
        "  br label %level",
        "written:",
        *found,
        "  %place.offset = mul i64 %k, %apart",
        "  %place = getelementptr double, ptr %output, i64 %place.offset",
        "  store double %number, ptr %place",
        "  %k.next = add i64 %k, 1",
        "  %k.more = icmp ult i64 %k.next, %kept",
        "  br i1 %k.more, label %value, label %done",
        "done:",
        "  ret void",
        "}",
    ])  # fmt: skip
