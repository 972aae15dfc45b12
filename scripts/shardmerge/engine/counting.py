"""Native code that counts: where masks are set, and where keys lie; and the greatest values."""

from __future__ import annotations

from collections.abc import Sequence

from shardmerge.engine.assembly import (
    DOUBLE,
    FLOAT,
    INT,
    LANES,
    MASK,
    StepLines,
    each_bit,
    element,
    inserted,
    loop_text,
    repeated,
    rows_text,
    short_lines,
    spread_lines,
)
from shardmerge.engine.text import Text
from shardmerge.methods.program import Reduction

#: Keys of a vector that are kept without asking how many there are.
_TURNS = 2
_ADDED_UP = f"declare i32 @llvm.vector.reduce.add.v{LANES}i32({INT})"
#: Numbers that are told where keys are kept: first how many tiles there are, and for how many
#: elements there is room. Then those of each bracket: how many keys are kept, and how many lie
#: below it, which go on; its least key, and how many it may have. Of each tile and bracket follows
#: what the first two are behind the tile.
CAUGHT, BRACKET = 2, 4


def masks_text(reduction: Reduction, head: str) -> str:
    """Return a function that counts, for each place of a vector, where masks are set.

    Args:
        reduction: Whose values are masks.
        head: The first line of the function.
    """
    writer = StepLines(reduction)
    entry = writer.entry()
    writer.values()
    carried, done = [], []
    for k, value in enumerate(map(writer.value, reduction.values)):
        ones = writer.new(f"zext {MASK} {value} to {INT}")
        writer.lines.append(f"  %added{k} = add {INT} %sum{k}, {ones}")
        carried.append(f"  %sum{k} = phi {INT} [zeroinitializer, %entry], [%added{k}, %loop]")
        done.append(f"  %at{k} = getelementptr {INT}, ptr %output, i64 {k}")
        done.append(f"  store {INT} %added{k}, ptr %at{k}, align 4")
    return loop_text(head, entry, carried, writer.lines, done)


def maxima_text(reduction: Reduction, head: str) -> str:
    """Return a function that finds the greatest values in each place of a row's vectors.

    Args:
        reduction: Whose values are of float64.
        head: The first line of the function.
    """
    writer = StepLines(reduction)
    writer.values("%at")
    kinds, carried = [], []
    for k, number in enumerate(reduction.values):
        name, (narrow, *_) = reduction.steps[number - len(reduction.leaves)]
        # float32 are compared as such
        value = writer.value(narrow if name == "wide" else number)
        kind = FLOAT if name == "wide" else DOUBLE
        # NaN stays
        above = writer.new(f"fcmp ogt {kind} {value}, %best{k}")
        nan = writer.new(f"fcmp uno {kind} {value}, {value}")
        taken = writer.new(f"or {MASK} {above}, {nan}")
        writer.new(f"select {MASK} {taken}, {kind} {value}, {kind} %best{k}", f"%better{k}")
        least = ", ".join([f"{element(kind)} 0xFFF0000000000000"] * LANES)
        carried.append(f"  %best{k} = phi {kind} [<{least}>, %row], [%better{k}, %loop]")
        kinds.append(kind)
    entry = [*writer.entry(), "  %rows = load i64, ptr %extra"]
    entry += [f"  %all{k} = mul i64 %rows, {k}" for k in range(len(kinds))]
    stored = [line for k, kind in enumerate(kinds) for line in (
        f"  %row{k} = add i64 %all{k}, %r",
        f"  %place{k} = getelementptr {DOUBLE}, ptr %output, i64 %row{k}",
        f"  %wide{k} = {'fpext' if kind == FLOAT else 'bitcast'} {kind} %better{k} to {DOUBLE}",
        f"  store {DOUBLE} %wide{k}, ptr %place{k}, align 8",
    )]  # fmt: skip
    after = ["fold0:", *stored, "  br label %end"]
    return rows_text(head, entry, (), carried, writer.lines, "%count", after)


def keys_text(reduction: Reduction, head: str) -> str:
    """Return a function that counts how many keys lie below brackets, and in each part of them.

    What lies in brackets is little of all: only its places are gone through, one by one.

    Args:
        reduction: Whose values are keys.
        head: The first line of the function.
    """
    writer = StepLines(reduction)
    kept = range(len(reduction.values))
    entry = [*writer.entry(), *(line for k in kept for line in _bracket(k))]
    writer.values()
    there = _there(writer)
    for k, key in enumerate(map(writer.value, reduction.values)):
        _sort_out(writer, k, key, there)
    end = f"any{len(kept)}"
    lines = [*writer.lines, "  br label %any0", "any0:"]
    lines += [line for k in kept for line in _counted(k)]
    return loop_text(head, entry, _summed(kept, end), lines, _stored(kept), end)


def caught_text(reduction: Reduction, head: str) -> str:
    """Return a function that counts how many keys lie below brackets, and keeps those in them.

    It goes through tiles of %count elements each. %extra has the numbers of ``CAUGHT`` first, of 64
    bits each.

    Args:
        reduction: Whose values are keys, one for each bracket.
        head: The first line of the function. %output has room of each bracket for the keys that are
            kept; where they are ``marked``, then of each for where they lie among all elements,
            then of each for a bit of every element whose key lies beyond it.
    """
    writer = StepLines(reduction)
    kept, marked = range(len(reduction.values)), reduction.kind == "marked"
    entry = [
        *writer.entry(),
        "  %rows = load i64, ptr %extra",
        "  %room.at = getelementptr i64, ptr %extra, i64 1",
        "  %room = load i64, ptr %room.at",
        *(line for k in kept for line in _list(k, len(kept), marked)),
    ]
    begin = [
        f"  %told.offset = mul i64 %r, {2 * len(kept)}",
        f"  %told.place = add i64 %told.offset, {CAUGHT + BRACKET * len(kept)}",
        "  %told = getelementptr i64, ptr %extra, i64 %told.place",
        *(f"  %held{k} = load i64, ptr %held{k}.at" for k in kept),
    ]
    writer.values("%at")
    there, keys = _there(writer), [*map(writer.value, reduction.values)]
    for k, key in enumerate(keys):
        offset, below = _below(writer, k, key, there)
        inside = writer.new(f"icmp ult {INT} {offset}, %size{k}")
        if marked:
            upto = writer.new(f"or {MASK} {below}, {inside}")
            upto = writer.new(f"bitcast {MASK} {upto} to i{LANES}")
            beyond = writer.new(f"xor i{LANES} {upto}, -1")
            place = writer.new(f"lshr i64 %at, {LANES.bit_length() - 1}")
            place = writer.new(f"getelementptr i{LANES}, ptr %marks{k}, i64 {place}")
            writer.lines.append(f"  store i{LANES} {beyond}, ptr {place}, align 4")
        writer.new(f"and {MASK} {inside}, {there}", f"%inside{k}")
        writer.new(f"bitcast {MASK} %inside{k} to i{LANES}", f"%bits{k}")
    end = f"any{len(kept)}"
    carried = [line for k in kept for line in (
        f"  %number{k} = phi i64 [%held{k}, %row], [%upto{k}, %{end}]",
        f"  %sum{k} = phi {INT} [zeroinitializer, %row], [%added{k}, %{end}]",
    )]  # fmt: skip
    lines = [*writer.lines, "  %index = trunc i64 %at to i32", "  br label %any0", "any0:"]
    for k, key in enumerate(keys):
        lines += _caught(k, key, marked)
    after = ["fold0:", *(line for k in kept for line in _told(k)), "  br label %end"]
    text = rows_text(head, entry, begin, carried, lines, "%count", after, end)
    return f"{text}\n{_ADDED_UP}"


def _told(k: int) -> list[str]:
    """Return what tells how many keys are kept of a bracket, and lie below it, behind a tile."""
    return [
        f"  %below{k}.short = call i32 @llvm.vector.reduce.add.v{LANES}i32({INT} %added{k})",
        f"  %below{k} = zext i32 %below{k}.short to i64",
        f"  %less{k}.before = load i64, ptr %less{k}.at",
        f"  %less{k} = add i64 %less{k}.before, %below{k}",
        *(line for at, (name, value) in enumerate(
            ((f"%held{k}", f"%upto{k}"), (f"%less{k}", f"%less{k}")), 2 * k
        ) for line in (
            f"  store i64 {value}, ptr {name}.at",
            f"  {name}.told = getelementptr i64, ptr %told, i64 {at}",
            f"  store i64 {value}, ptr {name}.told",
        )),
    ]  # fmt: skip


def less_text() -> str:
    """Return a function that counts how many keys are less than one, for each of some parts.

    Its arrays: the keys, int32, with room for a vector behind the last, and where each part ends,
    int64; a part has less than 2**31. Its number: the key. It writes int64.
    """
    text = Text()
    keys, ends = (text.load("ptr", "%leaves", str(k), 8) for k in range(2))
    key = text.new(f"trunc i64 {text.load('i64', '%more', '0', 8)} to i32")
    wanted = text.spread(INT, key)
    lanes = "<" + ", ".join(f"i32 {lane}" for lane in range(LANES)) + ">"
    text.begin("part", {"begun": ("i64", "0")})
    end = text.load("i64", ends, "%part.i", 8)
    text.begin("vector", {"sum": (INT, "zeroinitializer")}, "%begun")
    left = text.new(f"trunc i64 {text.new(f'sub i64 {end}, %vector.i')} to i32")
    there = text.new(f"icmp slt {INT} {lanes}, {text.spread(INT, left)}")
    less = text.new(f"icmp slt {INT} {text.load(INT, keys, '%vector.i')}, {wanted}")
    ones = text.new(f"zext {MASK} {text.new(f'and {MASK} {less}, {there}')} to {INT}")
    total = text.new(f"add {INT} %sum, {ones}")
    text.end("vector", {"sum": (INT, total)}, LANES, end)
    found = text.new(f"call i32 @llvm.vector.reduce.add.v{LANES}i32({INT} {total})")
    text.store("i64", text.new(f"zext i32 {found} to i64"), "%output", "%part.i", 8)
    text.end("part", {"begun": ("i64", end)}, 1, "%count")
    return text.function(_ADDED_UP)


def _summed(kept: range, end: str) -> list[str]:
    """Return what goes on from turn to turn: for each value how many keys lie below its bracket."""
    return [f"  %sum{k} = phi {INT} [%before{k}, %entry], [%added{k}, %{end}]" for k in kept]


def _stored(kept: range) -> list[str]:
    return [f"  store {INT} %added{k}, ptr %table{k}, align 4" for k in kept]


def _list(k: int, kept: int, marked: bool) -> list[str]:
    """Return what is found once for a bracket of which keys are kept."""
    lines = [f"  %keys{k} = alloca {INT}, align 64"]
    for place, name in enumerate((f"%held{k}", f"%less{k}"), CAUGHT + BRACKET * k):
        lines += [f"  {name}.at = getelementptr i64, ptr %extra, i64 {place}"]
    for place, name in enumerate((f"%low{k}", f"%size{k}"), CAUGHT + BRACKET * k + 2):
        lines += [*short_lines(f"{name}.one", "%extra", place), *spread_lines(name, f"{name}.one")]
    of = {"list": k, "places": kept + k} if marked else {"list": k}
    for name, number in of.items():
        lines += [
            f"  %{name}{k}.offset = mul i64 %room, {number}",
            f"  %{name}{k} = getelementptr i32, ptr %output, i64 %{name}{k}.offset",
        ]
    if marked:
        lines += [
            f"  %marks{k}.own = mul i64 %room, {k}",
            f"  %marks{k}.words = udiv i64 %marks{k}.own, {LANES}",
            f"  %marks{k}.lists = mul i64 %room, {2 * kept}",
            f"  %marks{k}.offset = add i64 %marks{k}.lists, %marks{k}.words",
            f"  %marks{k} = getelementptr i32, ptr %output, i64 %marks{k}.offset",
        ]
    return lines


def _caught(k: int, keys: str, marked: bool) -> list[str]:
    """Return the blocks that keep those of a vector's keys that lie in a bracket.

    The first few are written without asking whether there are so many: what is not one is
    overwritten, and a processor foretells few branches wrongly.
    """
    lines = [f"  store {INT} {keys}, ptr %keys{k}, align 64"]
    bits = f"%bits{k}"
    for turn in range(_TURNS):
        own = f"%turn{k}.{turn}"
        lines += [
            f"  {own}.place = add i64 %number{k}, {turn}",
            f"  {own}.any = call i{LANES} @llvm.cttz.i{LANES}(i{LANES} {bits}, i1 false)",
            f"  {own}.lane = and i{LANES} {own}.any, {LANES - 1}",
            *_keep_one(k, own, f"{own}.place", marked),
            f"  {own}.less = sub i{LANES} {bits}, 1",
            f"  {own}.rest = and i{LANES} {bits}, {own}.less",
        ]
        bits = f"{own}.rest"
    name = f"one{k}"
    body = [*_keep_one(k, f"%{name}", f"%place{k}", marked)]
    body += [f"  %place{k}.next = add i64 %place{k}, 1"]
    place = [f"  %place{k} = phi i64 [%beyond{k}, %any{k}], [%place{k}.next, %{name}]"]
    return [
        *lines,
        f"  %many{k} = call i{LANES} @llvm.ctpop.i{LANES}(i{LANES} %bits{k})",
        f"  %many{k}.long = zext i{LANES} %many{k} to i64",
        f"  %upto{k} = add i64 %number{k}, %many{k}.long",
        f"  %beyond{k} = add i64 %number{k}, {_TURNS}",
        f"  %some{k} = icmp ne i{LANES} {bits}, 0",
        f"  br i1 %some{k}, label %{name}, label %any{k + 1}",
        *each_bit(name, bits, f"any{k}", body, f"any{k + 1}", place),
        f"any{k + 1}:",
    ]


def _keep_one(k: int, own: str, place: str, marked: bool) -> list[str]:
    """Return what keeps the key of a vector's lane, OWN.lane, and where it is, at a place."""
    lines = [
        f"  {own}.key.at = getelementptr i32, ptr %keys{k}, i{LANES} {own}.lane",
        f"  {own}.key = load i32, ptr {own}.key.at",
        f"  {own}.kept.at = getelementptr i32, ptr %list{k}, i64 {place}",
        f"  store i32 {own}.key, ptr {own}.kept.at",
    ]
    if marked:
        lines += [
            f"  {own}.index = add i{LANES} %index, {own}.lane",
            f"  {own}.index.at = getelementptr i32, ptr %places{k}, i64 {place}",
            f"  store i32 {own}.index, ptr {own}.index.at",
        ]
    return lines


def _bracket(k: int) -> list[str]:
    """Return what is found once for a value: its bracket, and where is counted."""
    lines = [
        f"  %offset{k}.at = getelementptr i32, ptr %extra, i64 {4 * k + 3}",
        f"  %offset{k} = load i32, ptr %offset{k}.at",
        f"  %table{k} = getelementptr i32, ptr %output, i32 %offset{k}",
        f"  %bins{k} = getelementptr i32, ptr %table{k}, i64 {LANES}",
        f"  %before{k} = load {INT}, ptr %table{k}, align 4",
        f"  %digits{k} = alloca {INT}, align 64",
    ]
    for place, name in enumerate(("low", "shift", "parts")):
        own = f"%{name}{k}"
        lines += [
            f"  {own}.at = getelementptr i32, ptr %extra, i64 {4 * k + place}",
            f"  {own}.one = load i32, ptr {own}.at",
            *spread_lines(own, f"{own}.one"),
        ]
    return lines


def _there(writer: StepLines) -> str:
    """Write which places of a vector have elements; return the mask's name."""
    left = writer.new("sub i64 %count, %i")
    left = writer.new(f"trunc i64 {left} to i32")
    left = writer.new(repeated(writer.new(inserted(left))))
    lanes = ", ".join(f"i32 {lane}" for lane in range(LANES))
    return writer.new(f"icmp slt {INT} <{lanes}>, {left}")


def _below(writer: StepLines, k: int, key: str, there: str) -> tuple[str, str]:
    """Write how many keys lie below a bracket; return how far others are in it, and which do."""
    below = writer.new(f"icmp slt {INT} {key}, %low{k}")
    counted = writer.new(f"and {MASK} {below}, {there}")
    ones = writer.new(f"zext {MASK} {counted} to {INT}")
    writer.new(f"add {INT} %sum{k}, {ones}", f"%added{k}")
    return writer.new(f"sub {INT} {key}, %low{k}"), below


def _sort_out(writer: StepLines, k: int, key: str, there: str) -> None:
    """Write where keys lie: how many below the bracket, and of the others the parts."""
    offset, below = _below(writer, k, key, there)
    writer.new(f"lshr {INT} {offset}, %shift{k}", f"%digit{k}")
    inside = writer.new(f"icmp ult {INT} %digit{k}, %parts{k}")
    inside = writer.new(f"select {MASK} {below}, {MASK} zeroinitializer, {MASK} {inside}")
    inside = writer.new(f"and {MASK} {inside}, {there}")
    writer.new(f"bitcast {MASK} {inside} to i{LANES}", f"%bits{k}")


def _counted(k: int) -> list[str]:
    """Return the blocks that count the parts in which some keys of a vector lie."""
    whole, name = f"i{LANES}", f"count{k}"
    body = [
        f"  %one{k}.at = getelementptr i32, ptr %digits{k}, {whole} %{name}.lane",
        f"  %one{k} = load i32, ptr %one{k}.at",
        f"  %bin{k} = getelementptr i32, ptr %bins{k}, i32 %one{k}",
        f"  %seen{k} = load i32, ptr %bin{k}",
        f"  %more{k} = add i32 %seen{k}, 1",
        f"  store i32 %more{k}, ptr %bin{k}",
    ]
    stored = f"  store {INT} %digit{k}, ptr %digits{k}, align 64"
    return _if_any(k, stored, name, body)


def _if_any(
    k: int, put: str, name: str, body: Sequence[str], carried: Sequence[str] = ()
) -> list[str]:
    """Return the blocks that go through the places of a value's bits, if any is set.

    They begin in block any0, any1 and so on, and the last one is the next of these.

    Args:
        k: Number of the value.
        put: What is done before.
        name, body, carried: As of ``assembly.each_bit``.
    """
    return [
        f"  %some{k} = icmp ne i{LANES} %bits{k}, 0",
        f"  br i1 %some{k}, label %put{k}, label %any{k + 1}",
        f"put{k}:",
        put,
        f"  br label %{name}",
        *each_bit(name, f"%bits{k}", f"put{k}", body, f"any{k + 1}", carried),
        f"any{k + 1}:",
    ]
