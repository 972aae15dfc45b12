"""Native code for the parts of a tile that torch adds up before anything else.

``kernels.torch_order`` makes sums and norms of whole tensors from them.
"""

from __future__ import annotations

from shardmerge.engine.assembly import DECLARATIONS, FLOAT, LANES, StepLines
from shardmerge.engine.one_by_one import SQUARE_DECLARATIONS, number_blocks
from shardmerge.methods.kernels.torch_order import VECTOR
from shardmerge.methods.program import Reduction

_PART = f"<{VECTOR} x float>"


def parts_text(reduction: Reduction, rows: int, head: str) -> str:
    """Return a function that adds up what is ``rows``, ``pairs``, ``lanes`` or ``numbers``.

    Args:
        reduction: Of one of these kinds; ``count`` is a multiple of the elements of its parts.
        rows: Rows of a part.
        head: The function's first line.
    """
    writer = StepLines(reduction)
    entry = writer.entry()
    if reduction.kind in ("rows", "pairs"):
        return _parts(reduction, writer, entry, rows, head)
    return _norms(reduction, writer, entry, head)


def _parts(reduction: Reduction, writer: StepLines, entry: list[str], rows: int, head: str) -> str:
    """Return a function that writes the sums of rows, float32 [sums, parts, LANES]."""
    kept, pairs = range(len(reduction.values)), reduction.kind == "pairs"
    width = LANES * (2 if pairs else 1)
    shift = (rows * width).bit_length() - 1
    writer.values("%i", "v")
    found = [writer.value(value) for value in reduction.values]
    if pairs:
        writer.values(writer.new(f"add i64 %i, {LANES}"), "w")
        found = [
            _paired(writer, first, writer.value(value))
            for first, value in zip(found, reduction.values, strict=True)
        ]
    for k in kept:
        writer.new(f"fadd {FLOAT} %sum{k}, {found[k]}", f"%added{k}")
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


def _norms(reduction: Reduction, writer: StepLines, entry: list[str], head: str) -> str:
    """Return a function that adds squares to sums, float32 [rows, sums, lanes].

    %extra has the elements of a row, and how many rows behind its own sums those are written: none,
    or one where the next row goes on.
    """
    kept, lanes = range(len(reduction.values)), reduction.kind == "lanes"
    kind = _PART if lanes else "float"
    blocks = _lane_blocks(reduction, writer) if lanes else number_blocks(reduction, writer)
    first = "lane" if lanes else "piece"

    def rows(name: str, number: str) -> list[str]:
        lines = [f"  %{name}.at = mul i64 {number}, {len(kept)}"]
        for k in kept:
            lines += [
                f"  %{name}{k}.number = add i64 %{name}.at, {k}",
                f"  %{name}{k}.at = getelementptr {kind}, ptr %output, i64 %{name}{k}.number",
            ]
        return lines

    return "\n".join([
        head,
        "entry:",
        *entry,
        "  %each = load i64, ptr %extra",
        "  %behind.at = getelementptr i64, ptr %extra, i64 1",
        "  %behind = load i64, ptr %behind.at",
        "  br label %row",
        "row:",
        "  %r = phi i64 [0, %entry], [%r.next, %rowed]",
        "  %begin = mul i64 %r, %each",
        "  %far = add i64 %begin, %each",
        "  %inside = icmp ult i64 %far, %count",
        "  %stop = select i1 %inside, i64 %far, i64 %count",
        *rows("from", "%r"),
        *(f"  %before{k} = load {kind}, ptr %from{k}.at, align 4" for k in kept),
        f"  br label %{first}",
        *blocks,
        "rowed:",
        "  %to = add i64 %r, %behind",
        *rows("to", "%to"),
        *(f"  store {kind} %kept{k}, ptr %to{k}.at, align 4" for k in kept),
        "  %r.next = add i64 %r, 1",
        "  %r.more = icmp ult i64 %stop, %count",
        "  br i1 %r.more, label %row, label %done",
        "done:",
        "  ret void",
        "}",
        *DECLARATIONS,
        *SQUARE_DECLARATIONS,
    ])  # fmt: skip


def _lane_blocks(reduction: Reduction, writer: StepLines) -> list[str]:
    """Return the block that adds the squares of the elements from %begin to %stop to lanes."""
    kept = range(len(reduction.values))
    writer.values()
    for k, value in enumerate(map(writer.value, reduction.values)):
        squares = writer.new(f"fmul {FLOAT} {value}, {value}")
        total = f"%sum{k}"
        for begin in range(0, LANES, VECTOR):
            places = ", ".join(f"i32 {begin + lane}" for lane in range(VECTOR))
            part = writer.new(
                f"shufflevector {FLOAT} {squares}, {FLOAT} poison, <{VECTOR} x i32> <{places}>"
            )
            last = begin + VECTOR == LANES
            total = writer.new(f"fadd {_PART} {total}, {part}", f"%kept{k}" if last else None)
    return [
        "lane:",
        "  %i = phi i64 [%begin, %row], [%after, %lane]",
        *(f"  %sum{k} = phi {_PART} [%before{k}, %row], [%kept{k}, %lane]" for k in kept),
        *writer.lines,
        f"  %after = add i64 %i, {LANES}",
        "  %more = icmp ult i64 %after, %stop",
        "  br i1 %more, label %lane, label %rowed",
    ]
