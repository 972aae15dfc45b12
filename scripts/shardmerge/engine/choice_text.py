"""The text of native code that chooses elements by their ranks in rows: see ``row_chances``."""

from __future__ import annotations

from shardmerge.engine.assembly import (
    DECLARATIONS,
    FLOAT,
    INT,
    LANES,
    MASK,
    STORED,
    splat,
)
from shardmerge.engine.text import Text

#: Says of an element that it is not told whether it is chosen.
OPEN = 2
#: Buckets are made up to so many times the mean, that of logarithms; what is larger lies in the
#: last.
_REACH = 8.0
#: Below so many of so many parts of the buckets are about half of the elements: for normal numbers
#: the median is 1.27 times that mean, for others it is near that.
_EDGES, _PARTS = (27, 56), 256
#: Elements whose ranks are counted one by one; of a row that has more it is not told.
_FEW = 96
#: Elements that are looked at in one turn of a loop.
_UNROLLED = 8
#: Elements that are listed in one turn.
_PUT = 8
#: Vectors of numbers that are looked at in one turn, a bit of a word for each number.
_VECTORS = 64 // LANES
_SHORT, _BYTES = STORED["BF16"], f"<{LANES} x i8>"
#: What lies at the addresses that the function is given.
_GIVEN = "numbers", "most", "keys", "left", "room"
#: What lies in the room, 32 bits for each element of a row, then for each bucket.
_OF_ELEMENTS = "copy", "list", "ranks", "buckets"
_OF_BUCKETS = "table", "starts", "seen", "mixed"
#: Numbers beyond a row's last in each of these.
_MORE = 2 * LANES
#: The bits of 2**127 as a number, and 2**127.
_LARGE, _LARGEST = "0x41DFC00000000000", "0x47E0000000000000"
_GREATEST = (1 << 31) - 1
_FIRST = "<" + ", ".join(f"i32 {lane}" for lane in range(LANES)) + ">"


def room_of(length: int, buckets: int) -> int:
    """Return how many numbers of 32 bits the function needs to work in."""
    parts = (_OF_ELEMENTS, length), (_OF_BUCKETS, buckets)
    return sum(len(names) * (number + _MORE) for names, number in parts)


def choice_text(first_is_lowest: bool) -> str:
    """Return the function in LLVM's assembly language.

    Args:
        first_is_lowest: Of equal values the first has the lowest rank, else it is not known.
    """
    return _Choice(first_is_lowest).function()


class _Choice:
    """Writes the function, step by step.

    Args:
        first_is_lowest: Of equal values the first has the lowest rank.
    """

    def __init__(self, first_is_lowest: bool) -> None:
        self._first_is_lowest = first_is_lowest
        self._text = Text()

    def function(self) -> str:
        """Return the function."""
        t = self._text
        rows = self._entry()
        t.begin("row", {})
        offset = t.new("mul i64 %row.i, %n")
        keys = t.at("float", "%keys.all", offset)
        self._numbers = t.at("i32", "%numbers.all", offset)
        self._chosen = t.at("i8", "%output", offset)
        self._place(self._scale(keys))
        self._count()
        self._bound()
        self._each(*self._tell())
        t.lines += ["  br label %ranked", "ranked:"]
        t.block = "ranked"
        t.end("row", {}, 1, rows)
        return t.function(
            *DECLARATIONS,
            "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)",
            f"declare float @llvm.vector.reduce.fadd.v{LANES}f32(float, {FLOAT})",
            f"declare i32 @llvm.vector.reduce.add.v{LANES}i32({INT})",
            "declare i64 @llvm.cttz.i64(i64, i1)",
            "declare i64 @llvm.ctpop.i64(i64)",
            count="%n",
        )

    def _entry(self) -> str:
        """Load addresses; return the number of rows."""
        t = self._text
        for k, name in enumerate(_GIVEN):
            place = t.at("ptr", "%leaves", str(k))
            t.lines.append(f"  %{name}.all = load ptr, ptr {place}")
        rows, self._buckets = (t.load("i64", "%more", str(k), 8) for k in range(2))
        place = "%room.all"
        for names, number in ((_OF_ELEMENTS, "%n"), (_OF_BUCKETS, self._buckets)):
            size = t.new(f"add i64 {number}, {_MORE}")
            for name in names:
                t.lines.append(f"  %{name}.all = getelementptr i32, ptr {place}, i64 0")
                place = t.at("i32", place, size)
        self._width = t.new(f"uitofp i64 {self._buckets} to float")
        self._reach = t.new(f"fdiv float {self._width}, {_REACH}")
        last = t.new(f"trunc i64 {self._buckets} to i32")
        self._last = t.new(f"sub i32 {last}, 1")
        return rows

    def _scale(self, keys: str) -> str:
        """Copy a row's values; return what makes of them numbers of buckets.

        A mean of logarithms is that of bits, without zeros.
        """
        t = self._text
        t.begin("copy", {"sum": (FLOAT, "zeroinitializer"), "there": (INT, "zeroinitializer")})
        key = t.new(f"and {INT} {t.load(INT, keys, '%copy.i')}, {splat(_GREATEST)}")
        t.store(INT, key, "%copy.all", "%copy.i")
        added = t.new(f"fadd {FLOAT} %sum, {t.new(f'sitofp {INT} {key} to {FLOAT}')}")
        there = t.new(f"icmp ne {INT} {key}, zeroinitializer")
        some = t.new(f"add {INT} %there, {t.new(f'zext {MASK} {there} to {INT}')}")
        t.end("copy", {"sum": (FLOAT, added), "there": (INT, some)}, LANES, "%n")
        t.store(INT, splat(-1), "%copy.all", "%n")
        total = t.new(
            f"call float @llvm.vector.reduce.fadd.v{LANES}f32(float 0.0, {FLOAT} {added})"
        )
        number = t.new(f"call i32 @llvm.vector.reduce.add.v{LANES}i32({INT} {some})")
        number = t.new(f"uitofp i32 {t.new(f'or i32 {number}, 1')} to float")
        mean = t.new(f"fdiv float {total}, {number}")
        fits = t.new(f"fcmp olt float {mean}, {_LARGE}")
        mean = t.new(f"fptosi float {t.new(f'select i1 {fits}, float {mean}, float 0.0')} to i32")
        scale = t.new(f"fdiv float {self._reach}, {t.new(f'bitcast i32 {mean} to float')}")
        fits = t.new(f"fcmp olt float {scale}, {_LARGEST}")
        return t.spread(FLOAT, t.new(f"select i1 {fits}, float {scale}, float {_LARGEST}"))

    def _place(self, scale: str) -> None:
        """Tell the bucket of each element; that of zeros has nothing else."""
        t = self._text
        t.begin("place", {})
        value = t.load(FLOAT, "%copy.all", "%place.i")
        zero = t.new(f"fcmp oeq {FLOAT} {value}, zeroinitializer")
        value = t.new(f"fmul {FLOAT} {value}, {scale}")
        more = t.new(f"fadd {FLOAT} {value}, {t.spread(FLOAT, '1.0')}")
        value = t.new(f"select {MASK} {zero}, {FLOAT} zeroinitializer, {FLOAT} {more}")
        inside = t.new(f"fcmp olt {FLOAT} {value}, {t.spread(FLOAT, self._width)}")
        value = t.new(f"select {MASK} {inside}, {FLOAT} {value}, {FLOAT} zeroinitializer")
        value = t.new(f"fptosi {FLOAT} {value} to {INT}")
        value = t.new(f"select {MASK} {inside}, {INT} {value}, {INT} {t.spread(INT, self._last)}")
        value = t.new(f"trunc {INT} {value} to {_SHORT}")
        t.store(_SHORT, value, "%buckets.all", "%place.i", 2)
        t.end("place", {}, LANES, "%n")
        none = t.new(f"add i32 {self._last}, 2")
        none = t.new(f"trunc {INT} {t.spread(INT, none)} to {_SHORT}")
        t.store(_SHORT, none, "%buckets.all", "%n", 2)

    def _count(self) -> None:
        """Count the elements of each bucket."""
        t = self._text
        size = t.new(f"mul i64 {self._buckets}, 4")
        size = t.new(f"add i64 {size}, {4 * LANES}")
        t.lines.append(
            f"  call void @llvm.memset.p0.i64(ptr %table.all, i8 0, i64 {size}, i1 false)"
        )
        t.begin("count", {})
        for index in self._turns("%count.i"):
            place = t.at("i32", "%table.all", self._bucket(index))
            before = t.new(f"load i32, ptr {place}")
            t.lines.append(f"  store i32 {t.new(f'add i32 {before}, 1')}, ptr {place}")
        t.end("count", {}, _UNROLLED, "%n")

    def _bound(self) -> None:
        """Find what the least rank in each bucket allows."""
        t = self._text
        t.begin("rank", {"before": ("i64", "0")})
        upto = "%before"
        for index in self._turns("%rank.i"):
            place = t.at("i32", "%table.all", index)
            own = t.new(f"load i32, ptr {place}")
            t.lines.append(f"  store i32 {t.load('i32', '%most.all', upto)}, ptr {place}")
            if self._first_is_lowest:
                t.store("i32", t.new(f"trunc i64 {upto} to i32"), "%starts.all", index)
            upto = t.new(f"add i64 {upto}, {t.new(f'zext i32 {own} to i64')}")
        t.end("rank", {"before": ("i64", upto)}, _UNROLLED, self._buckets)
        t.store("i32", t.load("i32", "%most.all", "%n"), "%table.all", self._buckets)
        end = t.new(f"add i64 {self._buckets}, 1")
        t.store("<2 x i32>", "<i32 -1, i32 -1>", "%table.all", end)

    def _tell(self) -> tuple[str, str]:
        """Choose by the buckets; return of how many that does not tell, and the last block.

        Numbers that every rank allows, or none, of the buckets on one side of a middle one, need no
        bucket.
        """
        t = self._text
        least = t.spread(INT, t.new("load i32, ptr %most.all"))
        most = t.spread(INT, t.load("i32", "%most.all", "%n"))
        edges = [
            t.new(f"udiv i64 {t.new(f'mul i64 {self._buckets}, {part}')}, {_PARTS}")
            for part in _EDGES
        ]
        bounds = [least, *(t.spread(INT, t.load("i32", "%table.all", one)) for one in edges), most]
        edges = [t.spread(_SHORT, t.new(f"trunc i64 {one} to i16")) for one in edges]
        last = t.new(f"and i64 {t.new('sub i64 %n, 1')}, {-LANES}")
        t.begin("tell", {"listed": ("i64", "0")})
        bits = "0"
        for k in range(_VECTORS):
            # of vectors beyond the row the last one is looked at again
            place = t.new(f"add i64 %tell.i, {k * LANES}")
            inside = t.new(f"icmp ult i64 {place}, %n")
            place = t.new(f"select i1 {inside}, i64 {place}, i64 {last}")
            numbers = t.load(INT, self._numbers, place)
            bucket = t.load(_SHORT, "%buckets.all", place, 2)
            low, high = bounds[:2]
            for edge, next_low, next_high in zip(edges, bounds[1:-1], bounds[2:], strict=True):
                upper = t.new(f"icmp uge {_SHORT} {bucket}, {edge}")
                low = t.new(f"select {MASK} {upper}, {INT} {next_low}, {INT} {low}")
                high = t.new(f"select {MASK} {upper}, {INT} {next_high}, {INT} {high}")
            sure = t.new(f"icmp ule {INT} {numbers}, {low}")
            t.store(_BYTES, t.new(f"zext {MASK} {sure} to {_BYTES}"), self._chosen, place, 1)
            open_ = t.new(f"icmp ule {INT} {numbers}, {high}")
            open_ = t.new(f"xor {MASK} {open_}, {sure}")
            own = t.new(f"bitcast {MASK} {open_} to i{LANES}")
            own = t.new(f"shl i64 {t.new(f'zext i{LANES} {own} to i64')}, {k * LANES}")
            bits = t.new(f"or i64 {bits}, {own}")
        left = t.new("sub i64 %n, %tell.i")
        some = t.new(f"icmp ult i64 {left}, {_VECTORS * LANES}")
        there = t.new(f"sub i64 {t.new(f'shl i64 1, {left}')}, 1")
        there = t.new(f"select i1 {some}, i64 {there}, i64 -1")
        bits = t.new(f"and i64 {bits}, {there}")
        listed = self._list(bits)
        t.end("tell", {"listed": ("i64", listed)}, _VECTORS * LANES, "%n")
        t.lines += [
            f"  br i1 {t.new(f'icmp ne i64 {listed}, 0')}, label %looked, label %ranked",
            "looked:",
        ]
        t.block = "looked"
        t.begin("look", {"found": ("i64", "0")})
        index = t.new(f"zext i32 {t.load('i32', '%list.all', '%look.i')} to i64")
        found = self._tell_one(index, "%found")
        t.end("look", {"found": ("i64", found)}, 1, listed)
        return found, t.block

    def _list(self, bits: str) -> str:
        """Write the elements of set bits into the list; return how many are in it then.

        Some are written at once, whether they are there or not: how many there are would seldom be
        foretold rightly.
        """
        t = self._text
        number = t.new(f"call i64 @llvm.ctpop.i64(i64 {bits})")
        t.lines += [
            "  br label %put",
            "put:",
            f"  %put.left = phi i64 [{bits}, %tell], [%put.rest, %put]",
            "  %put.at = phi i64 [%listed, %tell], [%put.next, %put]",
        ]
        left = "%put.left"
        for k in range(_PUT):
            lane = t.new(f"call i64 @llvm.cttz.i64(i64 {left}, i1 false)")
            index = t.new(f"trunc i64 {t.new(f'add i64 %tell.i, {lane}')} to i32")
            t.store("i32", index, "%list.all", t.new(f"add i64 %put.at, {k}"))
            left = t.new(f"and i64 {left}, {t.new(f'sub i64 {left}, 1')}")
        t.lines += [
            f"  %put.rest = bitcast i64 {left} to i64",
            f"  %put.next = add i64 %put.at, {_PUT}",
            "  %put.again = icmp ne i64 %put.rest, 0",
            "  br i1 %put.again, label %put, label %told",
            "told:",
        ]
        return t.new(f"add i64 %listed, {number}")

    def _tell_one(self, index: str, found: str) -> str:
        """Write how an element is told by its bucket; return how many are not told up to it."""
        t = self._text
        place = t.at("i32", "%table.all", self._bucket(index))
        low, high = t.new(f"load i32, ptr {place}"), t.load("i32", place, "1")
        number = t.load("i32", self._numbers, index)
        sure = t.new(f"icmp ule i32 {number}, {low}")
        told = t.new(f"zext i1 {sure} to i8")
        open_ = t.new(f"xor i1 {t.new(f'icmp ule i32 {number}, {high}')}, {sure}")
        if not self._first_is_lowest:  # what is chosen of zeros changes nothing
            some = t.new(f"icmp ne i32 {t.load('i32', '%copy.all', index)}, 0")
            open_ = t.new(f"and i1 {open_}, {some}")
            told = t.new(f"select i1 {open_}, i8 {OPEN}, i8 {told}")
        t.store("i8", told, self._chosen, index, 1)
        t.store("i32", t.new(f"trunc i64 {index} to i32"), "%list.all", found)
        return t.new(f"add i64 {found}, {t.new(f'zext i1 {open_} to i64')}")

    def _each(self, found: str, before: str) -> None:
        """Tell of the rest by their ranks: how many are less, or equal and before."""
        t = self._text
        few = t.new(f"icmp ule i64 {found}, {_FEW}")
        t.lines += [f"  br i1 {few}, label %few, label %equal", "equal:"]
        t.block = "equal"
        left = self._of_one_value(found) if self._first_is_lowest else found
        still = t.new(f"icmp ule i64 {left}, {_FEW}")
        t.lines += [
            f"  br i1 {still}, label %few, label %many",
            "many:",
            "  %left.row = getelementptr i8, ptr %left.all, i64 %row.i",
            "  store i8 1, ptr %left.row",
            "  br label %ranked",
            "few:",
            f"  %open = phi i64 [{found}, %{before}], [{left}, %{t.block}]",
            "  %any = icmp ne i64 %open, 0",
            "  br i1 %any, label %some, label %ranked",
            "some:",
        ]
        t.block = "some"
        t.begin("each", {})
        index = t.load("i32", "%list.all", "%each.i")
        wide = t.new(f"zext i32 {index} to i64")
        key = t.load("i32", "%copy.all", wide)
        above = t.new(f"add i32 {key}, 1")
        number = t.load("i32", self._numbers, wide)
        if self._first_is_lowest:
            rank = self._counted_before(index, wide, key, above)
        else:
            rank, upto = self._counted(t.spread(INT, key), t.spread(INT, above))
            last = t.load("i32", "%most.all", t.new(f"sub i64 {upto}, 1"))
        sure = t.new(f"icmp ule i32 {number}, {t.load('i32', '%most.all', rank)}")
        told = t.new(f"zext i1 {sure} to i8")
        if not self._first_is_lowest:
            maybe = t.new(f"icmp ule i32 {number}, {last}")
            open_ = t.new(f"xor i1 {maybe}, {sure}")
            told = t.new(f"select i1 {open_}, i8 {OPEN}, i8 {told}")
            place = t.at("i8", "%left.all", "%row.i")
            before = t.new(f"load i8, ptr {place}")
            after = t.new(f"or i8 {before}, {t.new(f'zext i1 {open_} to i8')}")
            t.lines.append(f"  store i8 {after}, ptr {place}")
        t.store("i8", told, self._chosen, wide, 1)
        t.end("each", {}, 1, "%open")

    def _of_one_value(self, found: str) -> str:
        """Tell of elements that share their bucket with equals alone; return how many are left.

        Such an element's rank is that of the bucket's first, and how many of it come before.
        """
        t = self._text
        size = t.new(f"mul i64 {self._buckets}, 4")
        t.lines.append(
            f"  call void @llvm.memset.p0.i64(ptr %mixed.all, i8 0, i64 {size}, i1 false)"
        )
        t.begin("mark", {})
        index = t.new(f"zext i32 {t.load('i32', '%list.all', '%mark.i')} to i64")
        t.store("i32", t.load("i32", "%copy.all", index), "%seen.all", self._bucket(index))
        t.end("mark", {}, 1, found)
        t.begin("number", {})
        bucket = self._bucket("%number.i")
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
        bound, number = t.load("i32", "%most.all", rank), t.load("i32", self._numbers, index)
        sure = t.new(f"icmp ule i32 {number}, {bound}")
        t.store("i8", t.new(f"zext i1 {sure} to i8"), self._chosen, index, 1)
        t.store("i32", short, "%list.all", "%kept")
        mixed = t.new(f"icmp ne i32 {t.load('i32', '%mixed.all', self._bucket(index))}, 0")
        kept = t.new(f"add i64 %kept, {t.new(f'zext i1 {mixed} to i64')}")
        t.end("alone", {"kept": ("i64", kept)}, 1, found)
        return kept

    def _counted_before(self, index: str, wide: str, key: str, above: str) -> str:
        """Count the row's keys that are less, or equal and before an element."""
        t = self._text
        begin = t.new(f"and i64 {wide}, {-LANES}")
        lane = t.new(f"and i32 {index}, {LANES - 1}")
        same = t.new(f"icmp eq {INT} {t.load(INT, '%copy.all', begin)}, {t.spread(INT, key)}")
        before = t.new(f"icmp ult {INT} {_FIRST}, {t.spread(INT, lane)}")
        bits = t.new(f"bitcast {MASK} {t.new(f'and {MASK} {same}, {before}')} to i{LANES}")
        near = t.new(f"call i{LANES} @llvm.ctpop.i{LANES}(i{LANES} {bits})")
        t.begin("less", {"sums": (INT, "zeroinitializer")})
        bound = t.new(f"icmp ult i64 %less.i, {begin}")
        bound = t.spread(INT, t.new(f"select i1 {bound}, i32 {above}, i32 {key}"))
        less = t.new(f"icmp ult {INT} {t.load(INT, '%copy.all', '%less.i')}, {bound}")
        sums = t.new(f"add {INT} %sums, {t.new(f'zext {MASK} {less} to {INT}')}")
        t.end("less", {"sums": (INT, sums)}, LANES, "%n")
        total = t.new(f"call i32 @llvm.vector.reduce.add.v{LANES}i32({INT} {sums})")
        return t.new(f"zext i32 {t.new(f'add i32 {total}, {near}')} to i64")

    def _counted(self, low: str, high: str) -> tuple[str, str]:
        """Count the row's keys below two bounds."""
        t = self._text
        sums = {"sums": (INT, "zeroinitializer"), "sums.upto": (INT, "zeroinitializer")}
        t.begin("less", sums)
        keys, added = t.load(INT, "%copy.all", "%less.i"), []
        for name, bound in zip(sums, (low, high), strict=True):
            less = t.new(f"icmp ult {INT} {keys}, {bound}")
            added.append(t.new(f"add {INT} %{name}, {t.new(f'zext {MASK} {less} to {INT}')}"))
        carried = dict(zip(sums, ((INT, one) for one in added), strict=True))
        t.end("less", carried, LANES, "%n")
        totals = (
            t.new(f"call i32 @llvm.vector.reduce.add.v{LANES}i32({INT} {one})") for one in added
        )
        first, second = (t.new(f"zext i32 {total} to i64") for total in totals)
        return first, second

    def _turns(self, first: str) -> list[str]:
        """Write the indices of some elements."""
        return [first, *(self._text.new(f"add i64 {first}, {k}") for k in range(1, _UNROLLED))]

    def _bucket(self, index: str) -> str:
        """Load an element's bucket."""
        return self._text.new(f"zext i16 {self._text.load('i16', '%buckets.all', index, 2)} to i64")
