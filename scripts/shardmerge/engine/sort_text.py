"""The texts of native code for the steps of C++'s unstable sort: parts at a pivot, and insertion.

A pair is a key and which element it is of, in one number. What is sorted lies at %pairs.

A part is parted as the unguarded partition pairs elements: the first that must not stay on the
left changes place with the last that must not stay on the right, and so on. What must not stay is
listed block by block, without branches that depend on it, and only then moved.
"""

from __future__ import annotations

from collections.abc import Callable

#: Returns the lines that make %NAME.low and %NAME.high, between which lie all pairs of the key of
#: %NAME.pair.
Ends = Callable[[str], list[str]]
#: Elements of a block.
_BLOCK = 64


def parted_text(pair: str, ends: Ends) -> str:
    """Return the blocks of a function from ``pivot`` to before ``cut``, where %i parts pairs.

    The pivot, %m.pair, is the median of the second, the middle and the last of the %size pairs from
    %first to before %last. %depth.less is how often what is left may be parted.

    Args:
        pair: The type of pairs.
        ends: Of a pair's key.
    """
    return _PARTED.format(
        keys="\n".join(line for name in "abc" for line in ends(name)),
        middle="\n".join(ends("m")),
        left="\n".join(_stops(pair, "l", "add i64 %bi, {}", f"icmp uge {pair} {{}}, %m.low")),
        right="\n".join(
            _stops(pair, "r", "sub i64 %bj.last, {}", f"icmp ule {pair} {{}}, %m.high")
        ),
        pair=pair,
    )


def inserted_text(pair: str, ends: Ends, after: str) -> str:
    """Return the blocks from ``take`` on that sort pairs from %first to before %last by insertion.

    Before them lies a pair that is no greater than any.

    Args:
        pair: The type of pairs.
        ends: Of a pair's key.
        after: The block behind them; before them is ``sized``.
    """
    return _INSERTED.format(taken="\n".join(ends("k")), pair=pair, after=after)


def _stops(pair: str, side: str, place: str, test: str) -> list[str]:
    """Return the lines that list where a block has elements that must not stay on its side."""
    lines, found = [], "0"
    for k in range(_BLOCK):
        own = f"%{side}{k}"
        lines += [
            f"  {own}.i = {place.format(k)}",
            f"  {own}.at = getelementptr {pair}, ptr %pairs, i64 {own}.i",
            f"  {own} = load {pair}, ptr {own}.at",
            f"  {own}.stops = {test.format(own)}",
            f"  {own}.list = getelementptr i8, ptr %{side}.list, i64 {found}",
            f"  store i8 {k}, ptr {own}.list",
            f"  {own}.one = zext i1 {own}.stops to i64",
            f"  {own}.found = add i64 {own}.one, {found}",
        ]
        found = f"{own}.found"
    lines.append(f"  %{side}.found = add i64 {found}, 0")
    return lines


_PARTED = """
pivot:
  %depth.less = sub i64 %depth, 1
  %half = lshr i64 %size, 1
  %a.i = add i64 %first, 1
  %b.i = add i64 %first, %half
  %c.i = sub i64 %last, 1
  %first.at = getelementptr {pair}, ptr %pairs, i64 %first
  %a.at = getelementptr {pair}, ptr %pairs, i64 %a.i
  %b.at = getelementptr {pair}, ptr %pairs, i64 %b.i
  %c.at = getelementptr {pair}, ptr %pairs, i64 %c.i
  %a.pair = load {pair}, ptr %a.at
  %b.pair = load {pair}, ptr %b.at
  %c.pair = load {pair}, ptr %c.at
{keys}
  %ab = icmp ult {pair} %a.low, %b.low
  %bc = icmp ult {pair} %b.low, %c.low
  %ac = icmp ult {pair} %a.low, %c.low
  %m.up.rest = select i1 %ac, i64 %c.i, i64 %a.i
  %m.up = select i1 %bc, i64 %b.i, i64 %m.up.rest
  %m.down.rest = select i1 %bc, i64 %c.i, i64 %b.i
  %m.down = select i1 %ac, i64 %a.i, i64 %m.down.rest
  %m = select i1 %ab, i64 %m.up, i64 %m.down
  %m.at = getelementptr {pair}, ptr %pairs, i64 %m
  %m.pair = load {pair}, ptr %m.at
  %first.pair = load {pair}, ptr %first.at
  store {pair} %first.pair, ptr %m.at
  store {pair} %m.pair, ptr %first.at
{middle}
  br label %blocks
blocks:
  %bi = phi i64 [%a.i, %pivot], [%bi.next, %swapped]
  %bj = phi i64 [%last, %pivot], [%bj.next, %swapped]
  %ls = phi i64 [0, %pivot], [%ls.next, %swapped]
  %rs = phi i64 [0, %pivot], [%rs.next, %swapped]
  %ln = phi i64 [0, %pivot], [%ln.next, %swapped]
  %rn = phi i64 [0, %pivot], [%rn.next, %swapped]
  %bj.last = sub i64 %bj, 1
  %between = sub i64 %bj, %bi
  %is.wide = icmp sge i64 %between, 128
  br i1 %is.wide, label %fill.l, label %narrow
fill.l:
  %ls.empty = icmp eq i64 %ls, %ln
  br i1 %ls.empty, label %list.l, label %fill.r
list.l:
{left}
  br label %fill.r
fill.r:
  %ls.now = phi i64 [%ls, %fill.l], [0, %list.l]
  %ln.now = phi i64 [%ln, %fill.l], [%l.found, %list.l]
  %rs.empty = icmp eq i64 %rs, %rn
  br i1 %rs.empty, label %list.r, label %filled
list.r:
{right}
  br label %filled
filled:
  %rs.now = phi i64 [%rs, %fill.r], [0, %list.r]
  %rn.now = phi i64 [%rn, %fill.r], [%r.found, %list.r]
  %l.left = sub i64 %ln.now, %ls.now
  %r.left = sub i64 %rn.now, %rs.now
  %l.fewer = icmp ult i64 %l.left, %r.left
  %both = select i1 %l.fewer, i64 %l.left, i64 %r.left
  %some = icmp ne i64 %both, 0
  br i1 %some, label %swaps, label %swapped
swaps:
  %q = phi i64 [0, %filled], [%q.next, %swaps]
  %l.q = add i64 %ls.now, %q
  %r.q = add i64 %rs.now, %q
  %l.q.at = getelementptr i8, ptr %l.list, i64 %l.q
  %r.q.at = getelementptr i8, ptr %r.list, i64 %r.q
  %l.off = load i8, ptr %l.q.at
  %r.off = load i8, ptr %r.q.at
  %l.wide = zext i8 %l.off to i64
  %r.wide = zext i8 %r.off to i64
  %l.place = add i64 %bi, %l.wide
  %r.place = sub i64 %bj.last, %r.wide
  %l.at = getelementptr {pair}, ptr %pairs, i64 %l.place
  %r.at = getelementptr {pair}, ptr %pairs, i64 %r.place
  %l.pair = load {pair}, ptr %l.at
  %r.pair = load {pair}, ptr %r.at
  store {pair} %r.pair, ptr %l.at
  store {pair} %l.pair, ptr %r.at
  %q.next = add i64 %q, 1
  %q.more = icmp ult i64 %q.next, %both
  br i1 %q.more, label %swaps, label %swapped
swapped:
  %ls.next = add i64 %ls.now, %both
  %rs.next = add i64 %rs.now, %both
  %ln.next = add i64 %ln.now, 0
  %rn.next = add i64 %rn.now, 0
  %l.done = icmp eq i64 %ls.next, %ln.now
  %r.done = icmp eq i64 %rs.next, %rn.now
  %l.step = select i1 %l.done, i64 64, i64 0
  %r.step = select i1 %r.done, i64 64, i64 0
  %bi.next = add i64 %bi, %l.step
  %bj.next = sub i64 %bj, %r.step
  br label %blocks
narrow:
  %l.rest = icmp ne i64 %ls, %ln
  %r.rest = icmp ne i64 %rs, %rn
  %l.rest.at = getelementptr i8, ptr %l.list, i64 %ls
  %r.rest.at = getelementptr i8, ptr %r.list, i64 %rs
  %l.rest.short = load i8, ptr %l.rest.at
  %r.rest.short = load i8, ptr %r.rest.at
  %l.rest.wide = zext i8 %l.rest.short to i64
  %r.rest.wide = zext i8 %r.rest.short to i64
  %l.skip = select i1 %l.rest, i64 %l.rest.wide, i64 0
  %r.skip = select i1 %r.rest, i64 %r.rest.wide, i64 0
  %i.first = add i64 %bi, %l.skip
  %j.first = sub i64 %bj, %r.skip
  br label %left
left:
  %i = phi i64 [%i.first, %narrow], [%i.next, %left], [%i.after, %swap]
  %j = phi i64 [%j.first, %narrow], [%j, %left], [%jj, %swap]
  %i.at = getelementptr {pair}, ptr %pairs, i64 %i
  %i.pair = load {pair}, ptr %i.at
  %i.next = add i64 %i, 1
  %i.less = icmp ult {pair} %i.pair, %m.low
  br i1 %i.less, label %left, label %right.first
right.first:
  br label %right
right:
  %j.before = phi i64 [%j, %right.first], [%jj, %right]
  %jj = sub i64 %j.before, 1
  %j.at = getelementptr {pair}, ptr %pairs, i64 %jj
  %j.pair = load {pair}, ptr %j.at
  %j.more = icmp ugt {pair} %j.pair, %m.high
  br i1 %j.more, label %right, label %meet
meet:
  %apart = icmp slt i64 %i, %jj
  br i1 %apart, label %swap, label %cut
swap:
  store {pair} %j.pair, ptr %i.at
  store {pair} %i.pair, ptr %j.at
  %i.after = add i64 %i, 1
  br label %left
"""

_INSERTED = """
take:
  %k = phi i64 [%first, %sized], [%k.next, %put]
  %k.at = getelementptr {pair}, ptr %pairs, i64 %k
  %k.pair = load {pair}, ptr %k.at
{taken}
  br label %move
move:
  %h = phi i64 [%k, %take], [%h.less, %shift]
  %h.less = sub i64 %h, 1
  %before.at = getelementptr {pair}, ptr %pairs, i64 %h.less
  %before = load {pair}, ptr %before.at
  %h.at = getelementptr {pair}, ptr %pairs, i64 %h
  %is.more = icmp ugt {pair} %before, %k.high
  br i1 %is.more, label %shift, label %put
shift:
  store {pair} %before, ptr %h.at
  br label %move
put:
  store {pair} %k.pair, ptr %h.at
  %k.next = add i64 %k, 1
  %k.more = icmp ult i64 %k.next, %last
  br i1 %k.more, label %take, label %{after}
"""
