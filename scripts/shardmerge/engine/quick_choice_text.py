"""The texts of native code for what an unstable sort puts at some ranks: see ``quick_choice``.

An element is one number of 32 bits. Those of the key of an element at a boundary have numbers of
their own, which tell their indices; of all others only the key counts.
"""

from __future__ import annotations

from shardmerge.engine.assembly import INT, LANES, MASK, short_lines, splat, spread_lines
from shardmerge.engine.sort_text import inserted_text, parted_text

#: The key of NaN: all are equal. It is the greatest.
NAN = 0x7F800001


def numbers_text(descending: bool) -> str:
    """Return the function that makes numbers of consecutive magnitudes, and a mask, a bit each.

    Args:
        descending: The greatest magnitude has the lowest rank.
    """
    names = ("%index", "%n", "%one", "%two", "%least", "%most")
    key = f"sub {INT} {splat(NAN)}, %bits" if descending else f"add {INT} %bits, {splat(0)}"
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %more) {",
        "entry:",
        "  %keys = load ptr, ptr %leaves",
        "  %mask.at = getelementptr ptr, ptr %leaves, i64 1",
        "  %mask = load ptr, ptr %mask.at",
        *(line for k, name in enumerate(names) for line in short_lines(f"{name}.one", "%more", k)),
        *(line for name in names for line in spread_lines(name, f"{name}.one")),
        f"  %steps = add {INT} %index, <{', '.join(f'i32 {k}' for k in range(LANES))}>",
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [0, %entry], [%after, %loop]",
        "  %i.short = trunc i64 %i to i32",
        *spread_lines("%i.all", "%i.short"),
        f"  %own = add {INT} %steps, %i.all",
        "  %key.at = getelementptr i32, ptr %keys, i64 %i",
        f"  %any = load {INT}, ptr %key.at, align 4",
        f"  %is.nan = icmp ugt {INT} %any, {splat(NAN)}",
        f"  %bits = select {MASK} %is.nan, {INT} {splat(NAN)}, {INT} %any",
        f"  %key = {key}",
        *_raised("one", "%key"),
        *_raised("two", "%one.number"),
        "  %to = getelementptr i32, ptr %output, i64 %i",
        f"  store {INT} %two.number, ptr %to, align 4",
        f"  %from = icmp uge {INT} %key, %least",
        f"  %upto = icmp sle {INT} %key, %most",
        f"  %inside = and {MASK} %from, %upto",
        f"  %chosen = bitcast {MASK} %inside to i{LANES}",
        "  %byte = lshr i64 %i, 3",
        "  %mask.to = getelementptr i8, ptr %mask, i64 %byte",
        f"  store i{LANES} %chosen, ptr %mask.to, align 1",
        f"  %after = add i64 %i, {LANES}",
        "  %again = icmp ult i64 %after, %count",
        "  br i1 %again, label %loop, label %done",
        "done:",
        "  ret void",
        "}",
    ])  # fmt: skip


def _raised(name: str, number: str) -> list[str]:
    """Return the lines that make room for as many numbers as there are elements above a key's."""
    zeros = f"{INT} zeroinitializer"
    return [
        f"  %{name}.is = icmp eq {INT} %key, %{name}",
        f"  %{name}.above = icmp ugt {INT} %key, %{name}",
        f"  %{name}.own = select {MASK} %{name}.is, {INT} %own, {zeros}",
        f"  %{name}.room = select {MASK} %{name}.above, {INT} %n, {INT} %{name}.own",
        f"  %{name}.number = add {INT} {number}, %{name}.room",
    ]


def chosen_text() -> str:
    """Return the function that sets bits of a mask for the elements of a stretch of numbers."""
    vector = [
        line for name in ("n", "one", "two") for line in spread_lines(f"%{name}.all", f"%{name}")
    ]
    return _CHOSEN.format(
        lanes=LANES,
        int=INT,
        mask=MASK,
        vector="\n".join(vector),
        numbers="\n".join(numbers_lines()),
    )


def parts_text() -> str:
    """Return the function that sorts numbers as far as two boundaries need it.

    It takes parts from a stack: (first, last, how often they may be parted). It ends when there are
    none, or where a part was parted too often: it tells this part, and what is left of the stack.
    """
    return _PARTS.format(
        numbers="\n".join(numbers_lines()),
        parted=parted_text("i32", _ends),
        inserted=inserted_text("i32", _ends, "finished"),
    )


def _ends(name: str) -> list[str]:
    return key_ends(name, f"%{name}.pair")


def numbers_lines() -> list[str]:
    """Return the lines that load %n, the number of elements, and the first numbers %one, %two."""
    names = enumerate(("%n", "%one", "%two"))
    return [line for k, name in names for line in short_lines(name, "%more", k)]


def key_ends(name: str, number: str) -> list[str]:
    """Return the lines that make the least and the greatest number of an element's key."""
    return [
        f"  %{name}.one = sub i32 {number}, %one",
        f"  %{name}.two = sub i32 {number}, %two",
        f"  %{name}.is.one = icmp ult i32 %{name}.one, %n",
        f"  %{name}.is.two = icmp ult i32 %{name}.two, %n",
        f"  %{name}.low.rest = select i1 %{name}.is.two, i32 %two, i32 {number}",
        f"  %{name}.low = select i1 %{name}.is.one, i32 %one, i32 %{name}.low.rest",
        f"  %{name}.is.any = or i1 %{name}.is.one, %{name}.is.two",
        f"  %{name}.room = select i1 %{name}.is.any, i32 %n, i32 0",
        f"  %{name}.high = add i32 %{name}.low, %{name}.room",
    ]


_CHOSEN = """
define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %more) {{
entry:
  %all = load ptr, ptr %leaves
{numbers}
{vector}
  br label %next
next:
  %p = phi i64 [0, %entry], [%p.after, %some], [%q.next, %told]
  %more.left = icmp ult i64 %p, %count
  br i1 %more.left, label %look, label %end
look:
  %p.after = add i64 %p, {lanes}
  %fits = icmp ule i64 %p.after, %count
  %stop = select i1 %fits, i64 %p.after, i64 %count
  br i1 %fits, label %some, label %each
some:
  %v.at = getelementptr i32, ptr %all, i64 %p
  %v = load {int}, ptr %v.at, align 4
  %v.one = sub {int} %v, %one.all
  %v.two = sub {int} %v, %two.all
  %v.is.one = icmp ult {int} %v.one, %n.all
  %v.is.two = icmp ult {int} %v.two, %n.all
  %v.is = or {mask} %v.is.one, %v.is.two
  %v.bits = bitcast {mask} %v.is to i{lanes}
  %v.none = icmp eq i{lanes} %v.bits, 0
  br i1 %v.none, label %next, label %each
each:
  br label %one.of
one.of:
  %q = phi i64 [%p, %each], [%q.next, %told]
  %e.at = getelementptr i32, ptr %all, i64 %q
  %e = load i32, ptr %e.at
  %e.one = sub i32 %e, %one
  %e.two = sub i32 %e, %two
  %e.is.one = icmp ult i32 %e.one, %n
  %e.is.two = icmp ult i32 %e.two, %n
  %e.is = or i1 %e.is.one, %e.is.two
  br i1 %e.is, label %set, label %told
set:
  %index = select i1 %e.is.one, i32 %e.one, i32 %e.two
  %byte.short = lshr i32 %index, 3
  %byte = zext i32 %byte.short to i64
  %bit.short = and i32 %index, 7
  %bit.wide = shl i32 1, %bit.short
  %bit = trunc i32 %bit.wide to i8
  %byte.at = getelementptr i8, ptr %output, i64 %byte
  %old = load i8, ptr %byte.at
  %new = or i8 %old, %bit
  store i8 %new, ptr %byte.at
  br label %told
told:
  %q.next = add i64 %q, 1
  %q.more = icmp ult i64 %q.next, %stop
  br i1 %q.more, label %one.of, label %next
end:
  ret void
}}
"""

#: Before the first number lies one that is no greater than any.
_PARTS = """
define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %more) {{
entry:
  %room = load ptr, ptr %leaves
  %stack.at = getelementptr ptr, ptr %leaves, i64 1
  %stack = load ptr, ptr %stack.at
{numbers}
  %begin.at = getelementptr i64, ptr %more, i64 3
  %begin = load i64, ptr %begin.at
  %end.at = getelementptr i64, ptr %more, i64 4
  %end = load i64, ptr %end.at
  %top.at = getelementptr i64, ptr %more, i64 5
  %top.first = load i64, ptr %top.at
  %few.at = getelementptr i64, ptr %more, i64 6
  %few = load i64, ptr %few.at
  %pairs = getelementptr i32, ptr %room, i64 1
  %l.list = alloca [128 x i8], align 64
  %r.list = alloca [128 x i8], align 64
  br label %finished
part:
  %first = phi i64 [%first.popped, %pop], [%first, %cut]
  %last = phi i64 [%last.popped, %pop], [%i, %cut]
  %depth = phi i64 [%depth.popped, %pop], [%depth.less, %cut]
  %top = phi i64 [%top.less, %pop], [%top.more, %cut]
  %begin.above = icmp ugt i64 %begin, %first
  %begin.below = icmp ult i64 %begin, %last
  %begin.in = and i1 %begin.above, %begin.below
  %end.above = icmp ugt i64 %end, %first
  %end.below = icmp ult i64 %end, %last
  %end.in = and i1 %end.above, %end.below
  %any.in = or i1 %begin.in, %end.in
  br i1 %any.in, label %sized, label %finished
sized:
  %size = sub i64 %last, %first
  %is.small = icmp ule i64 %size, %few
  br i1 %is.small, label %take, label %large
finished:
  %top.now = phi i64 [%top.first, %entry], [%top, %part], [%top, %put]
  %is.empty = icmp eq i64 %top.now, 0
  br i1 %is.empty, label %done, label %pop
pop:
  %top.less = sub i64 %top.now, 3
  %pop.at = getelementptr i64, ptr %stack, i64 %top.less
  %pop.at1 = getelementptr i64, ptr %pop.at, i64 1
  %pop.at2 = getelementptr i64, ptr %pop.at, i64 2
  %first.popped = load i64, ptr %pop.at
  %last.popped = load i64, ptr %pop.at1
  %depth.popped = load i64, ptr %pop.at2
  br label %part
large:
  %falls = icmp eq i64 %depth, 0
  br i1 %falls, label %fallen, label %pivot
{parted}
cut:
  %push.at = getelementptr i64, ptr %stack, i64 %top
  %push.at1 = getelementptr i64, ptr %push.at, i64 1
  %push.at2 = getelementptr i64, ptr %push.at, i64 2
  store i64 %i, ptr %push.at
  store i64 %last, ptr %push.at1
  store i64 %depth.less, ptr %push.at2
  %top.more = add i64 %top, 3
  br label %part
{inserted}
fallen:
  %fallen.at1 = getelementptr i64, ptr %output, i64 1
  %fallen.at2 = getelementptr i64, ptr %output, i64 2
  store i64 %first, ptr %output
  store i64 %last, ptr %fallen.at1
  store i64 %top, ptr %fallen.at2
  br label %stop
done:
  store i64 -1, ptr %output
  br label %stop
stop:
  ret void
}}
"""
