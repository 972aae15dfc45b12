"""The text of native code that parts pairs at a pivot, as C++'s unguarded partition pairs them.

The first element that must not stay on the left changes place with the last that must not stay on
the right, and so on. What must not stay is listed block by block, without branches that depend on
it, and only then moved.
"""

from __future__ import annotations

#: Elements of a block.
_BLOCK = 64


def partition_text(pair: str = "i64") -> str:
    """Return the blocks of a function from ``blocks`` to before ``cut``, where %i parts them.

    It goes from ``pivot`` on, of %pairs from %a.i to before %last; keys of pairs below %low are
    less than the pivot's, those above %high greater.

    Args:
        pair: The type of what has a key and tells which element it is of.
    """
    return _TEXT.format(
        left="\n".join(_stops(pair, "l", "add i64 %bi, {}", f"icmp uge {pair} {{}}, %low")),
        right="\n".join(_stops(pair, "r", "sub i64 %bj.last, {}", f"icmp ule {pair} {{}}, %high")),
        pair=pair,
    )


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


_TEXT = """
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
  %i.less = icmp ult {pair} %i.pair, %low
  br i1 %i.less, label %left, label %right.first
right.first:
  br label %right
right:
  %j.before = phi i64 [%j, %right.first], [%jj, %right]
  %jj = sub i64 %j.before, 1
  %j.at = getelementptr {pair}, ptr %pairs, i64 %jj
  %j.pair = load {pair}, ptr %j.at
  %j.more = icmp ugt {pair} %j.pair, %high
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
