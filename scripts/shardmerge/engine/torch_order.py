"""Native code for the parts of a tile that torch adds up before anything else.

``kernels.torch_order`` makes sums and norms of whole tensors from them.
"""

from __future__ import annotations

from shardmerge.engine.assembly import DECLARATIONS, FLOAT, LANES, StepLines, loop_text
from shardmerge.methods.kernels.torch_order import VECTOR
from shardmerge.methods.program import Reduction

_PART = f"<{VECTOR} x float>"
#: Adds the elements of a vector to a number, one after the other.
_ONE_BY_ONE = f"@llvm.vector.reduce.fadd.v{LANES}f32"


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
    """Return a function that adds squares to the output, float32 [sums, lanes]."""
    kept, lanes = range(len(reduction.values)), reduction.kind == "lanes"
    kind = _PART if lanes else "float"
    writer.values()
    for k, value in enumerate(map(writer.value, reduction.values)):
        squares = writer.new(f"fmul {FLOAT} {value}, {value}")
        if not lanes:
            writer.new(f"call float {_ONE_BY_ONE}(float %sum{k}, {FLOAT} {squares})", f"%added{k}")
            continue
        total = f"%sum{k}"
        for begin in range(0, LANES, VECTOR):
            places = ", ".join(f"i32 {begin + lane}" for lane in range(VECTOR))
            part = writer.new(
                f"shufflevector {FLOAT} {squares}, {FLOAT} poison, <{VECTOR} x i32> <{places}>"
            )
            last = begin + VECTOR == LANES
            total = writer.new(f"fadd {_PART} {total}, {part}", f"%added{k}" if last else None)
    before = [
        f"  %at{k} = getelementptr {kind}, ptr %output, i64 {k}\n"
        f"  %before{k} = load {kind}, ptr %at{k}, align 4"
        for k in kept
    ]
    carried = [f"  %sum{k} = phi {kind} [%before{k}, %entry], [%added{k}, %loop]" for k in kept]
    done = [f"  store {kind} %added{k}, ptr %at{k}, align 4" for k in kept]
    loop = loop_text(head, [*entry, *before], carried, writer.lines, done)
    return f"{loop}\ndeclare float {_ONE_BY_ONE}(float, {FLOAT})"
