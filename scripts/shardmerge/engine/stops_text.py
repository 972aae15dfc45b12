"""The text of native code that lists which numbers must not stay on their side of a pivot."""

from __future__ import annotations

from shardmerge.engine.assembly import short_lines
from shardmerge.engine.text import Text

#: Numbers that are looked at in one turn of the loop.
UNROLLED = 8


def stops_text() -> str:
    """Return the function that lists the places of numbers between two, ascending.

    It takes places of at least ``UNROLLED`` numbers; where they begin, and room for how many are
    found; and the least number, and how far the greatest is from it.
    """
    t = Text()
    t.lines += [
        "  %all = load ptr, ptr %leaves",
        "  %total.at = getelementptr ptr, ptr %leaves, i64 1",
        "  %total = load ptr, ptr %total.at",
        *short_lines("%least", "%more", 0),
        *short_lines("%width", "%more", 1),
    ]
    t.begin("each", {"found": ("i64", "0")})
    found = "%found"
    for k in range(UNROLLED):
        index = t.new(f"add i64 %each.i, {k}")
        t.store("i64", index, "%output", found, 8)
        apart = t.new(f"sub i32 {t.load('i32', '%all', index)}, %least")
        stops = t.new(f"icmp ule i32 {apart}, %width")
        found = t.new(f"add i64 {found}, {t.new(f'zext i1 {stops} to i64')}")
    t.end("each", {"found": ("i64", found)}, UNROLLED, "%count")
    t.lines.append(f"  store i64 {found}, ptr %total, align 8")
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %more) {",
        "entry:",
        *t.lines,
        "  ret void",
        "}",
    ])  # fmt: skip
