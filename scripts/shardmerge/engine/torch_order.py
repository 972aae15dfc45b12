"""Native code for what torch adds up before anything else: parts of a tile, and squares.

``kernels.torch_order`` makes sums and norms of whole tensors from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shardmerge.engine import one_by_one
from shardmerge.engine.assembly import DECLARATIONS, DOUBLE, FLOAT, LANES, StepLines
from shardmerge.methods.kernels.torch_order import VECTOR
from shardmerge.methods.kernels.torch_rows import HIGHER
from shardmerge.methods.program import Reducing, Reduction

_PART = f"<{VECTOR} x float>"


def parts_text(reduction: Reduction, rows: int, head: str) -> str:
    """Return a function that adds up what is ``IN_TORCH_ORDER``.

    Args:
        reduction: Of one of these kinds; ``count`` is a multiple of the elements of its parts.
        rows: Rows of a part.
        head: The function's first line.
    """
    writer = StepLines(reduction)
    entry = writer.entry()
    if reduction.kind in ("rows", "pairs"):
        return _parts(reduction, writer, entry, rows, head)
    ways = reduction.ways or (reduction.kind,) * len(reduction.values)
    norms = [k for k, way in enumerate(ways) if way in ("lanes", "numbers")]
    sums = [k for k, way in enumerate(ways) if way in ("rows", "pairs")]
    return _rows(reduction, writer, [head, "entry:", *entry], ways, norms, sums, rows)


def _parts(reduction: Reduction, writer: StepLines, entry: list[str], rows: int, head: str) -> str:
    """Return a function that writes the sums of rows, float32 [sums, parts, LANES]."""
    kept, pairs = range(len(reduction.values)), reduction.kind == "pairs"
    width = _width(pairs=pairs)
    shift = (rows * width).bit_length() - 1
    _add_vectors(writer, _vectors(reduction, writer, pairs=pairs), kept)
    return "\n".join([
        head,
        "entry:",
        *entry,
        f"  %parts = lshr i64 %count, {shift}",
        "  br label %part",
        "part:",
        "  %begin = phi i64 [0, %entry], [%end, %flush]",
        f"  %end = add i64 %begin, {rows * width}",
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [%begin, %part], [%after, %loop]",
        *(f"  %sum{k} = phi {FLOAT} [zeroinitializer, %part], [%added{k}, %loop]" for k in kept),
        *writer.lines,
        f"  %after = add i64 %i, {width}",
        "  %more = icmp ult i64 %after, %end",
        "  br i1 %more, label %loop, label %flush",
        "flush:",
        f"  %number = lshr i64 %begin, {shift}",
        *(f"  %row{k}.first = mul i64 %parts, {k}\n"
          f"  %row{k} = add i64 %row{k}.first, %number\n"
          f"  %at{k} = getelementptr {FLOAT}, ptr %output, i64 %row{k}\n"
          f"  store {FLOAT} %added{k}, ptr %at{k}, align 4" for k in kept),
        "  %again = icmp ult i64 %end, %count",
        "  br i1 %again, label %part, label %done",
        "done:",
        "  ret void",
        "}",
        *DECLARATIONS,
    ])  # fmt: skip


def _paired(writer: StepLines, first: str, second: str) -> str:
    """Write the sums of every two parts of two vectors, as one vector."""
    halves = []
    for begin in (0, VECTOR):
        places = [
            part + lane for part in range(begin, 2 * LANES, 2 * VECTOR) for lane in range(VECTOR)
        ]
        chosen = ", ".join(f"i32 {place}" for place in places)
        mask = f"<{LANES} x i32> <{chosen}>"
        halves.append(writer.new(f"shufflevector {FLOAT} {first}, {FLOAT} {second}, {mask}"))
    return writer.new(f"fadd {FLOAT} {halves[0]}, {halves[1]}")


def _rows(
    reduction: Reduction,
    writer: StepLines,
    entry: Sequence[str],
    ways: Sequence[Reducing],
    norms: Sequence[int],
    sums: Sequence[int],
    rows: int,
) -> str:
    """Return a function that goes through rows, and adds squares to the sums of each.

    These are float32 [rows, norms, lanes]. %extra has the elements of a row, and how many rows
    behind its own sums those are written: none, or one where the next row goes on.

    Where values are added up too, a row is a tile, the last perhaps less. Then %extra goes on with
    the number of parts before, and with the places of sums of higher levels, float32 [sums, HIGHER,
    LANES], of the parts of a tile, float32 [sums, parts of a whole tile, LANES], of room for half
    as many float64, and of what is left of each whole tile's parts by halves, float64 [tiles, sums,
    LANES].

    Args:
        reduction: Of kind ``lanes``, ``numbers`` or ``whole``.
        writer: Of its steps.
        entry: The function's first lines.
        ways: How each of its values is added up.
        norms, sums: Which are squared, and which are not.
        rows: Rows of a part.
    """
    numbers = "numbers" in ways
    kind = _PART if "lanes" in ways else "float"
    width = _width(pairs="pairs" in ways)
    piece = rows * width if sums else one_by_one.PIECE

    def places(name: str, number: str) -> list[str]:
        lines = [f"  %{name}.at = mul i64 {number}, {len(norms)}"]
        for place, k in enumerate(norms):
            lines += [
                f"  %{name}{k}.number = add i64 %{name}.at, {place}",
                f"  %{name}{k}.at = getelementptr {kind}, ptr %output, i64 %{name}{k}.number",
            ]
        return lines

    # a turn follows another one at once, or one whose middles were mended
    again = ["loop", "joined"] if numbers else ["loop"]

    def phi(name: str, kind: str, first: str, then: str) -> str:
        others = "".join(f", [{then}, %{block}]" for block in again)
        return f"  {name} = phi {kind} [{first}, %piece]{others}"

    carried = [phi(f"%sum{k}", FLOAT, "zeroinitializer", f"%added{k}") for k in sums]
    found = _vectors(reduction, writer, pairs=width > LANES)
    _add_vectors(writer, found, sums)
    squared = {k: [vectors[k] for vectors in found] for k in norms}
    if numbers:
        carried += map(one_by_one.carried, norms)
        turned = one_by_one.add_units(writer, squared)
    else:
        carried += [phi(f"%lanes{k}", kind, f"%s{k}", f"%kept{k}") for k in norms]
        for k, values in squared.items():
            _add_to_lanes(writer, k, values)
        turned = ["  br i1 %more, label %loop, label %pieced"]
    loop, writer.lines = writer.lines, []
    after = one_by_one.after_a_piece(reduction, writer, norms) if numbers else ["pieced:"]
    return "\n".join([
        *entry,
        *_told(0, "each"),
        *_told(1, "behind"),
        *(line for k, name in enumerate(_TALLY, 2) for line in _told(k, name) if sums),
        "  br label %row",
        "row:",
        "  %r = phi i64 [0, %entry], [%r.next, %rowed]",
        *_counted("%n.row", sums, "%number, %entry", "%n.next, %rowed"),
        "  %begin = mul i64 %r, %each",
        "  %far = add i64 %begin, %each",
        "  %inside = icmp ult i64 %far, %count",
        "  %stop = select i1 %inside, i64 %far, i64 %count",
        *places("from", "%r"),
        *(f"  %before{k} = load {kind}, ptr %from{k}.at, align 4" for k in norms),
        "  br label %piece",
        "piece:",
        "  %p = phi i64 [%begin, %row], [%p.end, %ended]",
        *(f"  %s{k} = phi {kind} [%before{k}, %row], [%kept{k}, %ended]" for k in norms),
        *_counted("%n", sums, "%n.row, %row", "%n.next, %ended"),
        f"  %p.far = add i64 %p, {piece}",
        "  %p.inside = icmp ult i64 %p.far, %stop",
        "  %p.end = select i1 %p.inside, i64 %p.far, i64 %stop",
        *(line for k in norms if numbers for line in one_by_one.units_of(k)),
        "  br label %loop",
        "loop:",
        phi("%i", "i64", "%p", "%after"),
        *carried,
        *loop,
        f"  %after = add i64 %i, {width}",
        "  %more = icmp ult i64 %after, %p.end",
        *turned,
        *after,
        *(_levels(sums, rows, piece) if sums else ("  br label %ended", "ended:")),
        "  %p.more = icmp ult i64 %p.end, %stop",
        "  br i1 %p.more, label %piece, label %through",
        "through:",
        "  %to = add i64 %r, %behind",
        *places("to", "%to"),
        *(f"  store {kind} %kept{k}, ptr %to{k}.at, align 4" for k in norms),
        *(_halves(len(sums), piece) if sums else ("  br label %rowed",)),
        "rowed:",
        "  %r.next = add i64 %r, 1",
        "  %r.more = icmp ult i64 %stop, %count",
        "  br i1 %r.more, label %row, label %done",
        "done:",
        "  ret void",
        "}",
        *DECLARATIONS,
        *one_by_one.SQUARE_DECLARATIONS,
    ])  # fmt: skip


#: What %extra has where values are added up.
_TALLY = ("number", "levels", "parts", "wide", "seen")


def _told(place: int, name: str) -> list[str]:
    """Return the lines that load a number of %extra."""
    return [
        f"  %{name}.told = getelementptr i64, ptr %extra, i64 {place}",
        f"  %{name} = load i64, ptr %{name}.told",
    ]


def _counted(name: str, sums: Sequence[int], *values: str) -> list[str]:
    """Return the line that counts parts, if there are any."""
    of = ", ".join(f"[{value}]" for value in values)
    return [f"  {name} = phi i64 {of}"] if sums else []


def _width(*, pairs: bool) -> int:
    """Return the elements of a turn of the loop."""
    return LANES * (2 if pairs else 1)


def _vectors(reduction: Reduction, writer: StepLines, *, pairs: bool) -> list[list[str]]:
    """Write the values of one vector, or of two; return their names, vector by vector."""
    found, at = [], "%i"
    for prefix in "ab" if pairs else "a":
        if found:
            at = writer.new(f"add i64 %i, {LANES}")
        writer.values(at, prefix)
        found.append([writer.value(value) for value in reduction.values])
    return found


def _add_vectors(writer: StepLines, found: Sequence[Sequence[str]], kept: Iterable[int]) -> None:
    """Write that vectors, or the sums of pairs, are added to parts."""
    for k in kept:
        own = [vectors[k] for vectors in found]
        value = _paired(writer, *own) if len(own) > 1 else own[0]
        writer.new(f"fadd {FLOAT} %sum{k}, {value}", f"%added{k}")


def _add_to_lanes(writer: StepLines, k: int, values: Sequence[str]) -> None:
    """Write that the squares of vectors are added to the lanes of a sum."""
    total = f"%lanes{k}"
    for number, value in enumerate(values, 1):
        squares = writer.new(f"fmul {FLOAT} {value}, {value}")
        for begin in range(0, LANES, VECTOR):
            places = ", ".join(f"i32 {begin + lane}" for lane in range(VECTOR))
            part = writer.new(
                f"shufflevector {FLOAT} {squares}, {FLOAT} poison, <{VECTOR} x i32> <{places}>"
            )
            last = number == len(values) and begin + VECTOR == LANES
            total = writer.new(f"fadd {_PART} {total}, {part}", f"%kept{k}" if last else None)


def _levels(sums: Sequence[int], rows: int, piece: int) -> list[str]:
    """Return the end of a piece: its parts are kept, and added to sums of higher levels.

    As soon as a level has as many sums as a part has rows, it goes to the next.
    """
    lines = [
        "  %p.part = sub i64 %p, %begin",
        f"  %part = lshr i64 %p.part, {piece.bit_length() - 1}",
        f"  %many = lshr i64 %each, {piece.bit_length() - 1}",
        "  %n.next = add i64 %n, 1",
    ]
    for place, k in enumerate(sums):
        lines += [
            f"  %part{k}.first = mul i64 %many, {place}",
            f"  %part{k}.number = add i64 %part{k}.first, %part",
            *_at(f"%part{k}", FLOAT, "%parts", f"%part{k}.number"),
            f"  store {FLOAT} %added{k}, ptr %part{k}.at, align 4",
            *_raised(f"%first{k}", place * HIGHER, f"%added{k}"),
        ]
    for level in range(1, HIGHER):
        lines += [
            f"  %n{level}.rest = and i64 %n.next, {rows**level - 1}",
            f"  %n{level}.is = icmp eq i64 %n{level}.rest, 0",
            f"  br i1 %n{level}.is, label %level{level}, label %ended",
            f"level{level}:",
        ]
        for place, k in enumerate(sums):
            own = place * HIGHER + level - 1
            lines += [
                *_at(f"%full{level}.{k}", FLOAT, "%levels", own),
                f"  %full{level}.{k} = load {FLOAT}, ptr %full{level}.{k}.at, align 4",
                f"  store {FLOAT} zeroinitializer, ptr %full{level}.{k}.at, align 4",
                *_raised(f"%next{level}.{k}", own + 1, f"%full{level}.{k}"),
            ]
    return [*lines, "  br label %ended", "ended:"]


def _at(name: str, kind: str, base: str, number: str | int) -> list[str]:
    """Return the lines that find an element of an array whose place is a number."""
    return [
        f"  {name}.array = inttoptr i64 {base} to ptr",
        f"  {name}.at = getelementptr {kind}, ptr {name}.array, i64 {number}",
    ]


def _raised(name: str, place: int, value: str) -> list[str]:
    """Return the lines that add a vector to a sum of a higher level."""
    return [
        *_at(name, FLOAT, "%levels", place),
        f"  {name}.before = load {FLOAT}, ptr {name}.at, align 4",
        f"  {name}.sum = fadd {FLOAT} {name}.before, {value}",
        f"  store {FLOAT} {name}.sum, ptr {name}.at, align 4",
    ]


def _halves(sums: int, piece: int) -> list[str]:
    """Return the end of a whole tile: its parts are added up by halves, down to one vector."""

    def vector(name: str, kind: str, base: str, at: str) -> list[str]:
        one = kind.split()[-1].rstrip(">")
        return [
            *_at(name, one, base, at),
            f"  {name} = load {kind}, ptr {name}.at, align 4",
        ]

    def turns(block: str, before: str, end: str, after: str) -> tuple[list[str], list[str]]:
        begin = [f"{block}:", f"  %{block}.i = phi i64 [0, %{before}], [%{block}.next, %{block}]"]
        return begin, [
            f"  %{block}.next = add i64 %{block}.i, {LANES}",
            f"  %{block}.more = icmp ult i64 %{block}.next, {end}",
            f"  br i1 %{block}.more, label %{block}, label %{after}",
        ]

    widen, widened = turns("widen", "fold", "%half", "level")
    halve, halved = turns("halve", "level", "%less", "level")
    return [
        f"  %values = lshr i64 %each, {(piece // LANES).bit_length() - 1}",
        "  %half = lshr i64 %values, 1",
        "  %complete = icmp ule i64 %far, %count",
        "  br i1 %complete, label %fold, label %rowed",
        "fold:",
        "  %f = phi i64 [0, %through], [%f.next, %folded]",
        "  %f.own = mul i64 %f, %values",
        "  br label %widen",
        *widen,
        "  %near.i = add i64 %f.own, %widen.i",
        "  %far.i = add i64 %near.i, %half",
        *vector("%near.one", FLOAT, "%parts", "%near.i"),
        *vector("%far.one", FLOAT, "%parts", "%far.i"),
        f"  %near.wide = fpext {FLOAT} %near.one to {DOUBLE}",
        f"  %far.wide = fpext {FLOAT} %far.one to {DOUBLE}",
        f"  %both = fadd {DOUBLE} %near.wide, %far.wide",
        *_at("%both", "double", "%wide", "%widen.i"),
        f"  store {DOUBLE} %both, ptr %both.at, align 4",
        *widened,
        "level:",
        "  %size = phi i64 [%half, %widen], [%less, %halve]",
        "  %less = lshr i64 %size, 1",
        f"  %few = icmp ult i64 %less, {LANES}",
        "  br i1 %few, label %folded, label %halve",
        *halve,
        "  %other.i = add i64 %halve.i, %less",
        *vector("%own.one", DOUBLE, "%wide", "%halve.i"),
        *vector("%other.one", DOUBLE, "%wide", "%other.i"),
        f"  %halve.sum = fadd {DOUBLE} %own.one, %other.one",
        f"  store {DOUBLE} %halve.sum, ptr %own.one.at, align 4",
        *halved,
        "folded:",
        *vector("%left.one", DOUBLE, "%wide", "0"),
        f"  %seen.first = mul i64 %r, {sums}",
        "  %seen.number = add i64 %seen.first, %f",
        *_at("%seen.one", DOUBLE, "%seen", "%seen.number"),
        f"  store {DOUBLE} %left.one, ptr %seen.one.at, align 4",
        "  %f.next = add i64 %f, 1",
        f"  %f.more = icmp ult i64 %f.next, {sums}",
        "  br i1 %f.more, label %fold, label %rowed",
    ]
