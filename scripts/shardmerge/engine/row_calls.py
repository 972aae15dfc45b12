"""Native code that calls other native code row by row, and brings values to one number."""

from __future__ import annotations

from shardmerge.engine.assembly import next_row

#: What a call has: its code, where it writes and how far that moves from row to row, leaves, how
#: far they move, their number, elements, constants, the one that is the row's first element, more.
FIELDS = 10
#: Values that are brought together at once, from the most on: what is left is less than that.
_AT_ONCE = 16, 4, 1


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
    steps = [line for turn in range(len(_AT_ONCE)) for line in _halving(turn, number, kind)]
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
        f"  br i1 %some, label %by{_AT_ONCE[0]}, label %written",
        *steps,
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


def _halving(turn: int, number: str, kind: str) -> list[str]:
    """Return the blocks that bring values of two halves together, some at once."""
    blocks = ["level", *(f"by{one}" for one in _AT_ONCE), "level.end"]
    begun, own, after = blocks[turn : turn + 3]
    wide, first = _AT_ONCE[turn], f"%i{_AT_ONCE[turn - 1]}" if turn else "0"
    vector, bits = f"<{wide} x {number}>", f"<{wide} x i1>"
    combined = [f"  %both{wide} = fadd {vector} %a{wide}, %b{wide}"]
    if kind == "maxima":
        combined = [  # NaN stays
            f"  %above{wide} = fcmp ogt {vector} %b{wide}, %a{wide}",
            f"  %nan{wide} = fcmp uno {vector} %b{wide}, %b{wide}",
            f"  %taken{wide} = or {bits} %above{wide}, %nan{wide}",
            f"  %both{wide} = select {bits} %taken{wide}, {vector} %b{wide}, {vector} %a{wide}",
        ]
    return [
        f"{own}:",
        f"  %i{wide} = phi i64 [{first}, %{begun}], [%i{wide}.next, %add{wide}]",
        f"  %i{wide}.next = add i64 %i{wide}, {wide}",
        f"  %fits{wide} = icmp ule i64 %i{wide}.next, %half",
        f"  br i1 %fits{wide}, label %add{wide}, label %{after}",
        f"add{wide}:",
        f"  %far{wide} = add i64 %i{wide}, %upper",
        f"  %a{wide}.at = getelementptr {number}, ptr %x, i64 %i{wide}",
        f"  %b{wide}.at = getelementptr {number}, ptr %x, i64 %far{wide}",
        f"  %a{wide} = load {vector}, ptr %a{wide}.at, align 4",
        f"  %b{wide} = load {vector}, ptr %b{wide}.at, align 4",
        *combined,
        f"  store {vector} %both{wide}, ptr %a{wide}.at, align 4",
        f"  br label %{own}",
    ]
