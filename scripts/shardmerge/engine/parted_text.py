"""The texts of native code for numbers that must not stay on their side of a pivot.

They lie between two numbers, of which the least is given, and how far the greatest is from it.
Functions take whole turns of a loop: what lies behind the last number is looked at too.
"""

from __future__ import annotations

from shardmerge.engine.assembly import INT, LANES, MASK, short_lines
from shardmerge.engine.text import Text

#: Numbers that are looked at in one turn of a loop.
UNROLLED = 8
_BOUNDS = (*short_lines("%least", "%more", 0), *short_lines("%width", "%more", 1))


def counts_text(grid: int) -> str:
    """Return the function that counts them in stretches of consecutive numbers, int64 each.

    Args:
        grid: Numbers of a stretch, a multiple of LANES.
    """
    t = Text()
    t.lines += ["  %all = load ptr, ptr %leaves", *_BOUNDS]
    least, width = (t.spread(INT, name) for name in ("%least", "%width"))
    t.begin("row", {})
    begin = t.new(f"mul i64 %row.i, {grid}")
    numbers = t.at("i32", "%all", begin)
    t.begin("each", {"sum": (INT, "zeroinitializer")})
    stops = _stops(t, INT, t.load(INT, numbers, "%each.i"), least, width)
    added = t.new(f"add {INT} %sum, {t.new(f'zext {MASK} {stops} to {INT}')}")
    t.end("each", {"sum": (INT, added)}, LANES, str(grid))
    total = t.new(f"call i32 @llvm.vector.reduce.add.v{LANES}i32({INT} {added})")
    t.store("i64", t.new(f"zext i32 {total} to i64"), "%output", "%row.i", 8)
    t.end("row", {}, 1, "%count")
    return t.function(f"declare i32 @llvm.vector.reduce.add.v{LANES}i32({INT})")


def listed_text() -> str:
    """Return the function that copies them, in their order."""
    t = Text()
    t.lines += ["  %all = load ptr, ptr %leaves", *_BOUNDS]
    t.begin("each", {"found": ("i64", "0")})
    found = "%found"
    for k in range(UNROLLED):
        number = t.load("i32", "%all", t.new(f"add i64 %each.i, {k}"))
        t.store("i32", number, "%output", found)
        stops = _stops(t, "i32", number, "%least", "%width")
        found = t.new(f"add i64 {found}, {t.new(f'zext i1 {stops} to i64')}")
    t.end("each", {"found": ("i64", found)}, UNROLLED, "%count")
    return t.function()


def replaced_text() -> str:
    """Return the function that replaces them by the numbers of a list, from its end on."""
    t = Text()
    t.lines += ["  %list = load ptr, ptr %leaves", *_BOUNDS]
    above = t.new(f"add i64 {t.new('zext i32 %width to i64')}, 1")
    left = t.load("i64", "%more", "2", 8)
    t.begin("each", {"left": ("i64", t.new(f"sub i64 {left}, 1"))})
    left = "%left"
    for k in range(UNROLLED):
        index = t.new(f"add i64 %each.i, {k}")
        number, other = t.load("i32", "%output", index), t.load("i32", "%list", left)
        # bits, not a comparison: that would become a branch, which is foreseen half of the time
        apart = t.new(f"zext i32 {t.new(f'sub i32 {number}, %least')} to i64")
        mask = t.new(f"ashr i64 {t.new(f'sub i64 {apart}, {above}')}, 63")
        change = t.new(f"xor i32 {number}, {other}")
        change = t.new(f"and i32 {change}, {t.new(f'trunc i64 {mask} to i32')}")
        t.store("i32", t.new(f"xor i32 {number}, {change}"), "%output", index)
        left = t.new(f"add i64 {left}, {mask}")
    t.end("each", {"left": ("i64", left)}, UNROLLED, "%count")
    return t.function()


def _stops(t: Text, kind: str, number: str, least: str, width: str) -> str:
    apart = t.new(f"sub {kind} {number}, {least}")
    return t.new(f"icmp ule {kind} {apart}, {width}")
