"""Native code that chooses elements by a number and their rank within a row, mostly without ranks.

An element is chosen if its number is no more than a bound that grows with its rank. A row's values
are counted in buckets of equal width. The ranks that a bucket's elements have tell for most numbers
what is chosen. For the few others, their ranks are counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np

from shardmerge.engine.assembly import DECLARATIONS, FLOAT, INT, LANES, MASK, STORED, splat
from shardmerge.engine.native import compiled
from shardmerge.engine.row_ranks import native_ranks
from shardmerge.methods.kernels.ranks import Choose, choice_by

#: Buckets are made up to so many times the mean, that of logarithms; what is larger lies in the
#: last.
_REACH = 12.0
#: Elements whose ranks are counted one by one; a row that has more is sorted.
_FEW = 96
_MOST_BUCKETS = 1 << 14
#: Says of an element that it is not told whether it is chosen.
_OPEN = 2
#: Elements that are looked at in one turn of a loop.
_UNROLLED = 8
_SHORT = STORED["BF16"]
_NAMES = (
    *("keys", "numbers", "most", "copy", "buckets", "table", "list", "left"),
    *("starts", "seen", "mixed", "ranks"),
)


def native_choice(
    bounds: np.ndarray, ranks: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
) -> Choose:
    """Return what chooses elements whose numbers are below the bounds of their ranks.

    Args:
        bounds: By rank, ascending.
        ranks: Finds those of values within rows, where a mask is set, and alone knows the order of
            equal ones; what is chosen of zeros does not matter. Without it the first has the
            lowest.
    """
    by_ranks = choice_by(native_ranks, bounds)
    if ranks:
        by_ranks = choice_by(lambda values: ranks(values, np.ones(values.shape, bool)), bounds)
    if bounds[0] < 1 or (np.diff(bounds.astype(np.int64)) < 0).any():
        return by_ranks
    most = np.append(bounds, bounds[-1:]).astype(np.int64) - 1
    most = most.astype(np.uint32)

    def choose(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        chosen, left = _told(values, numbers, most, ranks is None)
        rest = np.flatnonzero(left)
        if len(rest) and ranks is None:
            chosen[rest] = by_ranks(values[rest], numbers[rest])
        elif len(rest):
            some = chosen[rest] == _OPEN
            found = ranks(values[rest], some)[some]
            row, column = some.nonzero()
            chosen[rest[row], column] = numbers[rest[row], column] < bounds[found]
        return chosen.view(bool)

    return choose


def _told(
    values: np.ndarray, numbers: np.ndarray, most: np.ndarray, first_is_lowest: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return which elements are chosen, 0 or 1, and in which rows that is not told of all.

    Where the first of equals need not be the lowest, what is not told is ``_OPEN``.

    Args:
        values: float32 [rows, length], not negative.
        numbers: Of the elements, uint32.
        most: By rank, the greatest number that is chosen, uint32; the last twice.
        first_is_lowest: Of equal values the first has the lowest rank, else it is not known.
    """
    rows, length = values.shape
    buckets = min(1 << max(length.bit_length() - 2, 5), _MOST_BUCKETS)
    room, left = length + 2 * LANES, np.zeros(rows, np.uint8)
    chosen = np.empty(rows * length + LANES, np.uint8)
    arrays = (
        *(_longer(one.reshape(-1)) for one in (values, numbers)),
        most,
        np.empty(room, np.uint32),
        np.empty(room, np.uint16),
        np.empty(buckets + LANES, np.uint32),
        np.empty(room, np.uint32),
        left,
        *(np.empty(buckets + LANES, np.uint32) for _ in range(3)),
        np.empty(room, np.uint32),
    )
    addresses = (ctypes.c_void_p * len(arrays))(*(one.ctypes.data for one in arrays))
    more = (ctypes.c_int64 * 2)(rows, buckets)
    function, _ = _function(first_is_lowest)
    function(chosen.ctypes.data, addresses, length, None, ctypes.addressof(more))
    return chosen[: rows * length].reshape(rows, length), left


def _longer(x: np.ndarray) -> np.ndarray:
    """Return an array with room for whole vectors at its end."""
    return np.concatenate([x, np.zeros(LANES, x.dtype)])


@cache
def _function(first_is_lowest: bool) -> tuple:
    return compiled(choice_text(first_is_lowest))


class _Text:
    """Lines of a function with one loop in another."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names = 0
        self.block = "entry"

    def new(self, text: str) -> str:
        """Write a line that makes a value; return its name."""
        self._names += 1
        self.lines.append(f"  %t{self._names} = {text}")
        return f"%t{self._names}"

    def at(self, kind: str, base: str, index: str) -> str:
        return self.new(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def load(self, kind: str, base: str, index: str, align: int = 4) -> str:
        return self.new(f"load {kind}, ptr {self.at(_one(kind), base, index)}, align {align}")

    def store(self, kind: str, value: str, base: str, index: str, align: int = 4) -> None:
        place = self.at(_one(kind), base, index)
        self.lines.append(f"  store {kind} {value}, ptr {place}, align {align}")

    def begin(self, name: str, carried: dict[str, tuple[str, str]], first: str = "0") -> None:
        """Begin a loop; ``carried`` are (type, first value) of what goes on to the next turn."""
        self.lines += [f"  br label %{name}", f"{name}:"]
        before = self.block
        phis = {f"{name}.i": ("i64", first), **carried}
        self.lines += [
            f"  %{key} = phi {kind} [{value}, %{before}], [%{key}.next, %{name}.end]"
            for key, (kind, value) in phis.items()
        ]
        self.block = name

    def end(self, name: str, carried: dict[str, str], step: int, stop: str) -> None:
        """End a loop; ``carried`` has (type, value) for the next turn."""
        self.lines += [f"  br label %{name}.end", f"{name}.end:"]
        for key, (kind, value) in carried.items():
            self.lines.append(f"  %{key}.next = bitcast {kind} {value} to {kind}")
        self.lines += [
            f"  %{name}.i.next = add i64 %{name}.i, {step}",
            f"  %{name}.more = icmp ult i64 %{name}.i.next, {stop}",
            f"  br i1 %{name}.more, label %{name}, label %{name}.done",
            f"{name}.done:",
        ]
        self.block = f"{name}.done"


def _one(kind: str) -> str:
    """Return the type of a vector's elements."""
    return kind.rpartition(" ")[2].rstrip(">") if kind.startswith("<") else kind


def choice_text(first_is_lowest: bool) -> str:
    """Return the function in LLVM's assembly language."""
    t = _Text()
    for k, name in enumerate(_NAMES):
        place = t.at("ptr", "%leaves", str(k))
        t.lines.append(f"  %{name}.all = load ptr, ptr {place}")
    rows, buckets = (t.load("i64", "%more", str(k), 8) for k in range(2))
    t.lines.append(f"  %wide.buckets = add i64 {buckets}, 0")
    width = t.new(f"uitofp i64 {buckets} to float")
    reach = t.new(f"fdiv float {width}, {_REACH}")
    last = t.new(f"trunc i64 {buckets} to i32")
    last = t.new(f"sub i32 {last}, 1")
    last_all, width_all = _spread(t, INT, last), _spread(t, FLOAT, width)
    size = t.new(f"mul i64 {buckets}, 4")
    size = t.new(f"add i64 {size}, {4 * LANES}")
    t.begin("row", {})
    offset = t.new("mul i64 %row.i, %n")
    keys, numbers = t.at("float", "%keys.all", offset), t.at("i32", "%numbers.all", offset)
    chosen = t.at("i8", "%output", offset)
    # the row's values; a mean of logarithms is that of bits, without zeros
    t.begin("copy", {"sum": (FLOAT, "zeroinitializer"), "there": (INT, "zeroinitializer")})
    key = t.new(f"and {INT} {t.load(INT, keys, '%copy.i')}, {splat(_GREATEST)}")
    t.store(INT, key, "%copy.all", "%copy.i")
    added = t.new(f"fadd {FLOAT} %sum, {t.new(f'sitofp {INT} {key} to {FLOAT}')}")
    there = t.new(f"icmp ne {INT} {key}, zeroinitializer")
    some = t.new(f"add {INT} %there, {t.new(f'zext {MASK} {there} to {INT}')}")
    t.end("copy", {"sum": (FLOAT, added), "there": (INT, some)}, LANES, "%n")
    t.store(INT, splat(-1), "%copy.all", "%n")
    total = t.new(f"call float @llvm.vector.reduce.fadd.v{LANES}f32(float 0.0, {FLOAT} {added})")
    number = t.new(f"call i32 @llvm.vector.reduce.add.v{LANES}i32({INT} {some})")
    number = t.new(f"uitofp i32 {t.new(f'or i32 {number}, 1')} to float")
    mean = t.new(f"fdiv float {total}, {number}")
    fits = t.new(f"fcmp olt float {mean}, {_LARGE}")
    mean = t.new(f"fptosi float {t.new(f'select i1 {fits}, float {mean}, float 0.0')} to i32")
    scale = t.new(f"fdiv float {reach}, {t.new(f'bitcast i32 {mean} to float')}")
    fits = t.new(f"fcmp olt float {scale}, {_LARGEST}")
    scale = _spread(t, FLOAT, t.new(f"select i1 {fits}, float {scale}, float {_LARGEST}"))
    # the bucket of each; that of zeros has nothing else
    t.begin("place", {})
    value = t.load(FLOAT, "%copy.all", "%place.i")
    zero = t.new(f"fcmp oeq {FLOAT} {value}, zeroinitializer")
    value = t.new(f"fmul {FLOAT} {value}, {scale}")
    more = t.new(f"fadd {FLOAT} {value}, {_spread(t, FLOAT, '1.0')}")
    value = t.new(f"select {MASK} {zero}, {FLOAT} zeroinitializer, {FLOAT} {more}")
    inside = t.new(f"fcmp olt {FLOAT} {value}, {width_all}")
    value = t.new(f"select {MASK} {inside}, {FLOAT} {value}, {FLOAT} zeroinitializer")
    value = t.new(f"fptosi {FLOAT} {value} to {INT}")
    value = t.new(f"select {MASK} {inside}, {INT} {value}, {INT} {last_all}")
    value = t.new(f"trunc {INT} {value} to {_SHORT}")
    t.store(_SHORT, value, "%buckets.all", "%place.i", 2)
    t.end("place", {}, LANES, "%n")
    none = t.new(f"add i32 {last}, 2")
    none = t.new(f"trunc {INT} {_spread(t, INT, none)} to {_SHORT}")
    t.store(_SHORT, none, "%buckets.all", "%n", 2)
    t.lines.append(f"  call void @llvm.memset.p0.i64(ptr %table.all, i8 0, i64 {size}, i1 false)")
    # how many are in each
    t.begin("count", {})
    for index in _turns(t, "%count.i"):
        place = t.at("i32", "%table.all", _bucket(t, index))
        before = t.new(f"load i32, ptr {place}")
        t.lines.append(f"  store i32 {t.new(f'add i32 {before}, 1')}, ptr {place}")
    t.end("count", {}, _UNROLLED, "%n")
    # what the least rank in each allows
    t.begin("rank", {"before": ("i64", "0")})
    upto = "%before"
    for index in _turns(t, "%rank.i"):
        place = t.at("i32", "%table.all", index)
        own = t.new(f"load i32, ptr {place}")
        t.lines.append(f"  store i32 {t.load('i32', '%most.all', upto)}, ptr {place}")
        if first_is_lowest:
            t.store("i32", t.new(f"trunc i64 {upto} to i32"), "%starts.all", index)
        upto = t.new(f"add i64 {upto}, {t.new(f'zext i32 {own} to i64')}")
    t.end("rank", {"before": ("i64", upto)}, _UNROLLED, buckets)
    t.store("i32", t.load("i32", "%most.all", "%n"), "%table.all", buckets)
    end = t.new(f"add i64 {buckets}, 1")
    t.store("<2 x i32>", "<i32 -1, i32 -1>", "%table.all", end)
    # what is chosen by that, and what is not told
    t.begin("tell", {"found": ("i64", "0")})
    found = "%found"
    for index in _turns(t, "%tell.i"):
        bucket = _bucket(t, index)
        place = t.at("i32", "%table.all", bucket)
        low = t.new(f"load i32, ptr {place}")
        high = t.load("i32", place, "1")
        number = t.load("i32", numbers, index)
        sure = t.new(f"icmp ule i32 {number}, {low}")
        told = t.new(f"zext i1 {sure} to i8")
        maybe = t.new(f"icmp ule i32 {number}, {high}")
        open_ = t.new(f"xor i1 {maybe}, {sure}")
        if not first_is_lowest:  # what is chosen of zeros changes nothing
            some = t.new(f"icmp ne i32 {t.load('i32', '%copy.all', index)}, 0")
            open_ = t.new(f"and i1 {open_}, {some}")
            told = t.new(f"select i1 {open_}, i8 {_OPEN}, i8 {told}")
        t.store("i8", told, chosen, index, 1)
        t.store("i32", t.new(f"trunc i64 {index} to i32"), "%list.all", found)
        found = t.new(f"add i64 {found}, {t.new(f'zext i1 {open_} to i64')}")
    t.end("tell", {"found": ("i64", found)}, _UNROLLED, "%n")
    few = t.new(f"icmp ule i64 {found}, {_FEW}")
    t.lines += [f"  br i1 {few}, label %few, label %equal", "equal:"]
    t.block = "equal"
    left = _of_one_value(t, found, numbers, chosen) if first_is_lowest else found
    still = t.new(f"icmp ule i64 {left}, {_FEW}")
    t.lines += [
        f"  br i1 {still}, label %few, label %many",
        "many:",
        "  %left.row = getelementptr i8, ptr %left.all, i64 %row.i",
        "  store i8 1, ptr %left.row",
        "  br label %ranked",
        "few:",
        f"  %open = phi i64 [{found}, %tell.done], [{left}, %{t.block}]",
        "  %any = icmp ne i64 %open, 0",
        "  br i1 %any, label %some, label %ranked",
        "some:",
    ]
    t.block = "some"
    # the ranks of those: how many are less, or equal and before
    t.begin("each", {})
    index = t.load("i32", "%list.all", "%each.i")
    own = _spread(t, INT, index)
    wide = t.new(f"zext i32 {index} to i64")
    key = t.load("i32", "%copy.all", wide)
    low = _spread(t, INT, key)
    high = _spread(t, INT, t.new(f"add i32 {key}, 1"))
    number = t.load("i32", numbers, wide)
    if first_is_lowest:
        rank, _ = _counted(t, low, high, own)
    else:
        rank, upto = _counted(t, low, high, None)
        last = t.load("i32", "%most.all", t.new(f"sub i64 {upto}, 1"))
    sure = t.new(f"icmp ule i32 {number}, {t.load('i32', '%most.all', rank)}")
    told = t.new(f"zext i1 {sure} to i8")
    if not first_is_lowest:
        maybe = t.new(f"icmp ule i32 {number}, {last}")
        open_ = t.new(f"xor i1 {maybe}, {sure}")
        told = t.new(f"select i1 {open_}, i8 {_OPEN}, i8 {told}")
        place = t.at("i8", "%left.all", "%row.i")
        before = t.new(f"load i8, ptr {place}")
        after = t.new(f"or i8 {before}, {t.new(f'zext i1 {open_} to i8')}")
        t.lines.append(f"  store i8 {after}, ptr {place}")
    t.store("i8", told, chosen, wide, 1)
    t.end("each", {}, 1, "%open")
    t.lines += ["  br label %ranked", "ranked:"]
    t.block = "ranked"
    t.end("row", {}, 1, rows)
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %n, ptr %constants, ptr %more) {",
        "entry:",
        *t.lines,
        "  ret void",
        "}",
        *DECLARATIONS,
        "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)",
        f"declare float @llvm.vector.reduce.fadd.v{LANES}f32(float, {FLOAT})",
        f"declare i32 @llvm.vector.reduce.add.v{LANES}i32({INT})",
    ])  # fmt: skip


def _of_one_value(t: _Text, found: str, numbers: str, chosen: str) -> str:
    """Tell of elements that share their bucket with equal ones alone; return how many are left.

    Such an element's rank is that of the bucket's first, and how many of the bucket come before.
    """
    size = t.new("mul i64 %wide.buckets, 4")
    t.lines.append(f"  call void @llvm.memset.p0.i64(ptr %mixed.all, i8 0, i64 {size}, i1 false)")
    t.begin("mark", {})
    index = t.new(f"zext i32 {t.load('i32', '%list.all', '%mark.i')} to i64")
    t.store("i32", t.load("i32", "%copy.all", index), "%seen.all", _bucket(t, index))
    t.end("mark", {}, 1, found)
    t.begin("number", {})
    bucket = _bucket(t, "%number.i")
    place = t.at("i32", "%starts.all", bucket)
    rank = t.new(f"load i32, ptr {place}")
    t.lines.append(f"  store i32 {t.new(f'add i32 {rank}, 1')}, ptr {place}")
    t.store("i32", rank, "%ranks.all", "%number.i")
    key = t.load("i32", "%copy.all", "%number.i")
    other = t.new(f"xor i32 {key}, {t.load('i32', '%seen.all', bucket)}")
    place = t.at("i32", "%mixed.all", bucket)
    before = t.new(f"load i32, ptr {place}")
    t.lines.append(f"  store i32 {t.new(f'or i32 {before}, {other}')}, ptr {place}")
    t.end("number", {}, 1, "%n")
    t.begin("alone", {"kept": ("i64", "0")})
    short = t.load("i32", "%list.all", "%alone.i")
    index = t.new(f"zext i32 {short} to i64")
    rank = t.new(f"zext i32 {t.load('i32', '%ranks.all', index)} to i64")
    bound, number = t.load("i32", "%most.all", rank), t.load("i32", numbers, index)
    sure = t.new(f"icmp ule i32 {number}, {bound}")
    t.store("i8", t.new(f"zext i1 {sure} to i8"), chosen, index, 1)
    t.store("i32", short, "%list.all", "%kept")
    mixed = t.new(f"icmp ne i32 {t.load('i32', '%mixed.all', _bucket(t, index))}, 0")
    kept = t.new(f"add i64 %kept, {t.new(f'zext i1 {mixed} to i64')}")
    t.end("alone", {"kept": ("i64", kept)}, 1, found)
    return kept


def _counted(t: _Text, low: str, high: str, own: str | None) -> tuple[str, str]:
    """Count the row's keys below two bounds; the first is the higher one before an element."""
    sums = {"sums": (INT, "zeroinitializer"), "sums.upto": (INT, "zeroinitializer")}
    t.begin("less", {"lanes": (INT, _FIRST), **sums})
    bounds = [low, high]
    if own:
        before = t.new(f"icmp ult {INT} %lanes, {own}")
        bounds = [t.new(f"select {MASK} {before}, {INT} {high}, {INT} {low}")]
    keys = t.load(INT, "%copy.all", "%less.i")
    added = []
    for name, bound in zip(sums, bounds, strict=False):
        less = t.new(f"icmp ult {INT} {keys}, {bound}")
        added.append(t.new(f"add {INT} %{name}, {t.new(f'zext {MASK} {less} to {INT}')}"))
    added += added[: 2 - len(added)]
    lanes = t.new(f"add {INT} %lanes, {splat(LANES)}")
    carried = dict(zip(sums, ((INT, one) for one in added), strict=True))
    t.end("less", {"lanes": (INT, lanes), **carried}, LANES, "%n")
    totals = (t.new(f"call i32 @llvm.vector.reduce.add.v{LANES}i32({INT} {one})") for one in added)
    first, second = (t.new(f"zext i32 {total} to i64") for total in totals)
    return first, second


#: The bits of 2**127 as a number, and 2**127.
_LARGE, _LARGEST = "0x41DFC00000000000", "0x47E0000000000000"
_GREATEST = (1 << 31) - 1
_FIRST = "<" + ", ".join(f"i32 {lane}" for lane in range(LANES)) + ">"


def _spread(t: _Text, kind: str, value: str) -> str:
    first = t.new(f"insertelement {kind} poison, {_one(kind)} {value}, i64 0")
    return t.new(f"shufflevector {kind} {first}, {kind} poison, {INT} zeroinitializer")


def _turns(t: _Text, first: str) -> list[str]:
    return [first, *(t.new(f"add i64 {first}, {k}") for k in range(1, _UNROLLED))]


def _bucket(t: _Text, index: str) -> str:
    return t.new(f"zext i16 {t.load('i16', '%buckets.all', index, 2)} to i64")
