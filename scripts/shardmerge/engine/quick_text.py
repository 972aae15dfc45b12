"""The text of native code for an introspective sort of rows: see ``quick_ranks``."""

from __future__ import annotations

from shardmerge.engine.assembly import INT, LANES, MASK, spread_lines
from shardmerge.engine.sort_text import inserted_text, parted_text

#: More keys than are looked for; if there are so many, all parts are sorted.
_WANTED = 64


def quick_text() -> str:
    """Return the function in LLVM's assembly language."""
    return _TEXT.format(
        wanted="\n".join(_any_wanted()),
        parted=parted_text("i64", _ends),
        inserted=inserted_text("i64", _ends, "tell"),
    )


def _ends(name: str) -> list[str]:
    """Return the lines that make the least and the greatest pair of a pair's key."""
    return [
        f"  %{name}.low = and i64 %{name}.pair, -4294967296",
        f"  %{name}.high = or i64 %{name}.pair, 4294967295",
    ]


def _any_wanted() -> list[str]:
    """Return the lines that look whether any wanted key lies between those of a part."""
    lines = [
        line for name in ("least", "most") for line in spread_lines(f"%{name}.all", f"%{name}")
    ]
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
{wanted}
  %w.any = icmp ne i32 %w.bits, 0
  %w.some = or i1 %w.any, %all
  br i1 %w.some, label %sized, label %finished
sized:
  %size = sub i64 %last, %first
  %is.small = icmp ule i64 %size, 16
  br i1 %is.small, label %take, label %large
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
{parted}
cut:
  %middle.long = lshr i64 %m.pair, 32
  %middle = trunc i64 %middle.long to i32
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
{inserted}
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
