"""Native code for ranks within rows as the sort of C++'s library has them, where torch uses it.

It is an introspective quicksort: the pivot is the median of the second, the middle and the last
element, what is left of at most 16 elements is sorted by insertion. It is not stable, so that the
ranks of equal values depend on every step. Whether torch has the same ranks is tried once.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from shardmerge.engine.assembly import INT, LANES, MASK
from shardmerge.engine.native import compiled

if TYPE_CHECKING:
    import torch

#: Elements of a block, whose places on the wrong side are listed before any is moved.
_BLOCK = 64
#: More keys than are looked for; if there are so many, all parts are sorted.
_WANTED = 64
#: Rows that are tried: (rows, length, different values).
_TRIED = ((40, 17, 5), (8, 100, 30), (4, 1000, 3), (4, 1000, 200), (2, 5000, 250))


def ranks_like_torch(values: np.ndarray, wanted: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return the ranks along rows, [rows, length], as ``torch.argsort`` has them.

    Args:
        values: float32 [rows, length], not negative, which the type has.
        wanted: Whose ranks are asked for, bool; other elements' are not told.
        dtype: That torch sorts.
    """
    from shardmerge.methods.kernels.execute import torch_ranks

    if not _is_torchs(dtype):
        return torch_ranks(values, dtype)
    ranks, done = _quick_ranks(values, wanted)
    if len(rest := np.flatnonzero(done == 0)):
        ranks[rest] = torch_ranks(values[rest], dtype)
    return ranks


@cache
def _is_torchs(dtype: torch.dtype) -> bool:
    """Whether torch has the same ranks, in what is tried."""
    from shardmerge.methods.kernels.execute import torch_ranks

    random = np.random.default_rng(0)
    for rows, length, different in _TRIED:
        values = random.integers(0, different, (rows, length)).astype(np.float32) / 64
        ranks, done = _quick_ranks(values, np.ones(values.shape, bool))
        if not (done.all() and np.array_equal(ranks, torch_ranks(values, dtype))):
            return False
    return True


def _quick_ranks(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks, uint32, and which rows were sorted: another sort is for those that fall apart.

    Args:
        values: float32 [rows, length], not negative.
        wanted: Whose ranks are asked for.
    """
    rows, length = values.shape
    keys, wanted = np.ascontiguousarray(values), np.ascontiguousarray(wanted)
    ranks, done = np.empty(values.shape, np.uint32), np.zeros(rows, np.uint8)
    depth = 2 * (length.bit_length() - 1)
    # before the first element lies one that is never greater
    room = np.zeros(length + 1, np.uint64)
    stack = np.empty(5 * (depth + 2), np.int64)
    arrays = keys, room, stack, done, wanted
    addresses = (ctypes.c_void_p * len(arrays))(*(one.ctypes.data for one in arrays))
    more = (ctypes.c_int64 * 2)(rows, depth)
    _function()[0](ranks.ctypes.data, addresses, length, None, ctypes.addressof(more))
    return ranks, done


@cache
def _function() -> tuple:
    return compiled(quick_text())


def quick_text() -> str:
    """Return the function in LLVM's assembly language."""
    return _TEXT.format(
        wanted="\n".join(_any_wanted()),
        left="\n".join(_stops("l", "add i64 %bi, {}", "icmp uge i64 {}, %low")),
        right="\n".join(_stops("r", "sub i64 %bj.last, {}", "icmp ule i64 {}, %high")),
    )


def _any_wanted() -> list[str]:
    """Return the lines that look whether any wanted key lies between those of a part."""
    lines = []
    for k in range(_WANTED // LANES):
        lines += [
            f"  %w{k}.at = getelementptr i32, ptr %wanted, i64 {k * LANES}",
            f"  %w{k} = load {INT}, ptr %w{k}.at, align 4",
            f"  %w{k}.above = icmp uge {INT} %w{k}, %least.all",
            f"  %w{k}.below = icmp ule {INT} %w{k}, %most.all",
            f"  %w{k}.in = and {MASK} %w{k}.above, %w{k}.below",
        ]
    lines.append(f"  %w.or = or {MASK} %w0.in, %w1.in")
    lines.append(f"  %w.bits = bitcast {MASK} %w.or to i{LANES}")
    return lines


def _stops(side: str, place: str, test: str) -> list[str]:
    """Return the lines that list where a block has elements that must not stay on its side."""
    lines, found = [], "0"
    for k in range(_BLOCK):
        own = f"%{side}{k}"
        lines += [
            f"  {own}.i = {place.format(k)}",
            f"  {own}.at = getelementptr i64, ptr %pairs, i64 {own}.i",
            f"  {own} = load i64, ptr {own}.at",
            f"  {own}.stops = {test.format(own)}",
            f"  {own}.list = getelementptr i8, ptr %{side}.list, i64 {found}",
            f"  store i8 {k}, ptr {own}.list",
            f"  {own}.one = zext i1 {own}.stops to i64",
            f"  {own}.found = add i64 {own}.one, {found}",
        ]
        found = f"{own}.found"
    lines.append(f"  %{side}.found = add i64 {found}, 0")
    return lines


#: A pair is a key, in the upper half, and an element's index.
_TEXT = """
define void @merge(ptr %output, ptr %leaves, i64 %n, ptr %constants, ptr %more) {{
entry:
  %room.at = getelementptr ptr, ptr %leaves, i64 1
  %stack.at = getelementptr ptr, ptr %leaves, i64 2
  %done.at = getelementptr ptr, ptr %leaves, i64 3
  %depth.at = getelementptr i64, ptr %more, i64 1
  %keys.all = load ptr, ptr %leaves
  %room = load ptr, ptr %room.at
  %stack = load ptr, ptr %stack.at
  %done.all = load ptr, ptr %done.at
  %pairs = getelementptr i64, ptr %room, i64 1
  %depth.all = load i64, ptr %depth.at
  %rows = load i64, ptr %more
  %open.at = getelementptr ptr, ptr %leaves, i64 4
  %open.rows = load ptr, ptr %open.at
  %wanted = alloca [64 x i32], align 64
  %l.list = alloca [128 x i8], align 64
  %r.list = alloca [128 x i8], align 64
  br label %row
row:
  %r = phi i64 [0, %entry], [%r.next, %next]
  %offset = mul i64 %r, %n
  %keys = getelementptr i32, ptr %keys.all, i64 %offset
  %ranks = getelementptr i32, ptr %output, i64 %offset
  %open = getelementptr i8, ptr %open.rows, i64 %offset
  call void @llvm.memset.p0.i64(ptr %wanted, i8 -1, i64 256, i1 false)
  br label %fill
fill:
  %f = phi i64 [0, %row], [%f.next, %fill]
  %w = phi i64 [0, %row], [%w.next, %fill]
  %key.at = getelementptr i32, ptr %keys, i64 %f
  %key.any = load i32, ptr %key.at
  %is.nan = icmp ugt i32 %key.any, 2139095041
  %key = select i1 %is.nan, i32 2139095041, i32 %key.any
  %key.long = zext i32 %key to i64
  %key.high = shl i64 %key.long, 32
  %pair = or i64 %key.high, %f
  %pair.at = getelementptr i64, ptr %pairs, i64 %f
  store i64 %pair, ptr %pair.at
  %open.f.at = getelementptr i8, ptr %open, i64 %f
  %open.f = load i8, ptr %open.f.at
  %open.is = icmp ne i8 %open.f, 0
  %open.one = zext i1 %open.is to i64
  %w.fits = icmp ult i64 %w, 63
  %w.place = select i1 %w.fits, i64 %w, i64 63
  %w.at = getelementptr i32, ptr %wanted, i64 %w.place
  store i32 %key, ptr %w.at
  %w.next = add i64 %w, %open.one
  %f.next = add i64 %f, 1
  %f.more = icmp ult i64 %f.next, %n
  br i1 %f.more, label %fill, label %first.part
first.part:
  %all = icmp ugt i64 %w.next, 63
  %end.place = select i1 %all, i64 63, i64 %w.next
  %end.at = getelementptr i32, ptr %wanted, i64 %end.place
  store i32 -1, ptr %end.at
  br label %part
part:
  %first = phi i64 [0, %first.part], [%first.popped, %pop], [%first, %cut]
  %last = phi i64 [%n, %first.part], [%last.popped, %pop], [%i, %cut]
  %depth = phi i64 [%depth.all, %first.part], [%depth.popped, %pop], [%depth.less, %cut]
  %top = phi i64 [0, %first.part], [%top.less, %pop], [%top.more, %cut]
  %least = phi i32 [0, %first.part], [%least.popped, %pop], [%least, %cut]
  %most = phi i32 [-1, %first.part], [%most.popped, %pop], [%middle, %cut]
  %least.first = insertelement <32 x i32> poison, i32 %least, i64 0
  %least.all = shufflevector <32 x i32> %least.first, <32 x i32> poison, <32 x i32> zeroinitializer
  %most.first = insertelement <32 x i32> poison, i32 %most, i64 0
  %most.all = shufflevector <32 x i32> %most.first, <32 x i32> poison, <32 x i32> zeroinitializer
{wanted}
  %w.any = icmp ne i32 %w.bits, 0
  %w.some = or i1 %w.any, %all
  br i1 %w.some, label %sized, label %finished
sized:
  %size = sub i64 %last, %first
  %is.small = icmp ule i64 %size, 16
  br i1 %is.small, label %insert, label %large
finished:
  %is.empty = icmp eq i64 %top, 0
  br i1 %is.empty, label %sorted, label %pop
pop:
  %top.less = sub i64 %top, 5
  %pop.at = getelementptr i64, ptr %stack, i64 %top.less
  %pop.at1 = getelementptr i64, ptr %pop.at, i64 1
  %pop.at2 = getelementptr i64, ptr %pop.at, i64 2
  %pop.at3 = getelementptr i64, ptr %pop.at, i64 3
  %pop.at4 = getelementptr i64, ptr %pop.at, i64 4
  %least.popped = load i32, ptr %pop.at3
  %most.popped = load i32, ptr %pop.at4
  %first.popped = load i64, ptr %pop.at
  %last.popped = load i64, ptr %pop.at1
  %depth.popped = load i64, ptr %pop.at2
  br label %part
large:
  %falls = icmp eq i64 %depth, 0
  br i1 %falls, label %next, label %pivot
pivot:
  %depth.less = sub i64 %depth, 1
  %half = lshr i64 %size, 1
  %a.i = add i64 %first, 1
  %b.i = add i64 %first, %half
  %c.i = sub i64 %last, 1
  %first.at = getelementptr i64, ptr %pairs, i64 %first
  %a.at = getelementptr i64, ptr %pairs, i64 %a.i
  %b.at = getelementptr i64, ptr %pairs, i64 %b.i
  %c.at = getelementptr i64, ptr %pairs, i64 %c.i
  %a.pair = load i64, ptr %a.at
  %b.pair = load i64, ptr %b.at
  %c.pair = load i64, ptr %c.at
  %a = lshr i64 %a.pair, 32
  %b = lshr i64 %b.pair, 32
  %c = lshr i64 %c.pair, 32
  %ab = icmp ult i64 %a, %b
  %bc = icmp ult i64 %b, %c
  %ac = icmp ult i64 %a, %c
  %m.up.rest = select i1 %ac, i64 %c.i, i64 %a.i
  %m.up = select i1 %bc, i64 %b.i, i64 %m.up.rest
  %m.down.rest = select i1 %bc, i64 %c.i, i64 %b.i
  %m.down = select i1 %ac, i64 %a.i, i64 %m.down.rest
  %m = select i1 %ab, i64 %m.up, i64 %m.down
  %m.at = getelementptr i64, ptr %pairs, i64 %m
  %m.pair = load i64, ptr %m.at
  %first.pair = load i64, ptr %first.at
  store i64 %first.pair, ptr %m.at
  store i64 %m.pair, ptr %first.at
  %low = and i64 %m.pair, -4294967296
  %high = or i64 %m.pair, 4294967295
  %middle.long = lshr i64 %m.pair, 32
  %middle = trunc i64 %middle.long to i32
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
  %l.at = getelementptr i64, ptr %pairs, i64 %l.place
  %r.at = getelementptr i64, ptr %pairs, i64 %r.place
  %l.pair = load i64, ptr %l.at
  %r.pair = load i64, ptr %r.at
  store i64 %r.pair, ptr %l.at
  store i64 %l.pair, ptr %r.at
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
  %i.at = getelementptr i64, ptr %pairs, i64 %i
  %i.pair = load i64, ptr %i.at
  %i.next = add i64 %i, 1
  %i.less = icmp ult i64 %i.pair, %low
  br i1 %i.less, label %left, label %right.first
right.first:
  br label %right
right:
  %j.before = phi i64 [%j, %right.first], [%jj, %right]
  %jj = sub i64 %j.before, 1
  %j.at = getelementptr i64, ptr %pairs, i64 %jj
  %j.pair = load i64, ptr %j.at
  %j.more = icmp ugt i64 %j.pair, %high
  br i1 %j.more, label %right, label %meet
meet:
  %apart = icmp slt i64 %i, %jj
  br i1 %apart, label %swap, label %cut
swap:
  store i64 %j.pair, ptr %i.at
  store i64 %i.pair, ptr %j.at
  %i.after = add i64 %i, 1
  br label %left
cut:
  %push.at = getelementptr i64, ptr %stack, i64 %top
  %push.at1 = getelementptr i64, ptr %push.at, i64 1
  %push.at2 = getelementptr i64, ptr %push.at, i64 2
  store i64 %i, ptr %push.at
  store i64 %last, ptr %push.at1
  %push.at3 = getelementptr i64, ptr %push.at, i64 3
  %push.at4 = getelementptr i64, ptr %push.at, i64 4
  store i32 %middle, ptr %push.at3
  store i32 %most, ptr %push.at4
  store i64 %depth.less, ptr %push.at2
  %top.more = add i64 %top, 5
  br label %part
insert:
  br label %take
take:
  %k = phi i64 [%first, %insert], [%k.next, %put]
  %k.at = getelementptr i64, ptr %pairs, i64 %k
  %k.pair = load i64, ptr %k.at
  %k.high = or i64 %k.pair, 4294967295
  br label %move
move:
  %h = phi i64 [%k, %take], [%h.less, %shift]
  %h.less = sub i64 %h, 1
  %before.at = getelementptr i64, ptr %pairs, i64 %h.less
  %before = load i64, ptr %before.at
  %h.at = getelementptr i64, ptr %pairs, i64 %h
  %is.more = icmp ugt i64 %before, %k.high
  br i1 %is.more, label %shift, label %put
shift:
  store i64 %before, ptr %h.at
  br label %move
put:
  store i64 %k.pair, ptr %h.at
  %k.next = add i64 %k, 1
  %k.more = icmp ult i64 %k.next, %last
  br i1 %k.more, label %take, label %tell
tell:
  br label %rank
rank:
  %p = phi i64 [%first, %tell], [%p.next, %rank]
  %p.at = getelementptr i64, ptr %pairs, i64 %p
  %p.pair = load i64, ptr %p.at
  %index = and i64 %p.pair, 4294967295
  %rank.at = getelementptr i32, ptr %ranks, i64 %index
  %p.short = trunc i64 %p to i32
  store i32 %p.short, ptr %rank.at
  %p.next = add i64 %p, 1
  %p.more = icmp ult i64 %p.next, %last
  br i1 %p.more, label %rank, label %finished
sorted:
  %sorted.at = getelementptr i8, ptr %done.all, i64 %r
  store i8 1, ptr %sorted.at
  br label %next
next:
  %r.next = add i64 %r, 1
  %r.more = icmp ult i64 %r.next, %rows
  br i1 %r.more, label %row, label %end
end:
  ret void
}}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""
