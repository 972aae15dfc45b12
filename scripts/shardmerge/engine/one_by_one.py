"""Native code that adds squares to a float32 number one after the other, many at a time.

Each sum is rounded, so the order counts. But as long as the sum stays between two powers of 2, it
is a multiple of one unit, and so is what each square adds to it: the square rounded to units. Such
multiples may be added up in any order. Only a square that lies in the middle between two multiples
needs to know whether the sum before it is odd: the sum after it is even. So vectors are added up,
and middles are looked at one by one. Where the sum passes a power of 2, numbers are added as they
come.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardmerge.engine.assembly import FLOAT, INT, LANES, MASK, StepLines, splat, spread_lines
from shardmerge.methods.program import Reduction

#: Elements after which it is known whether the sum has passed a power of 2.
PIECE = 1024
_BITS = f"i{LANES}"
#: Adds up a vector: from a number one after the other, or where any order does.
_SUM = f"@llvm.vector.reduce.fadd.v{LANES}f32"
_EXPONENT, _HALF_A_UNIT, _NAN = 0x7F800000, "0x3E70000000000000", "0x7FF8000000000000"
#: The least positive number.
_LEAST = "0x36A0000000000000"
_PRODUCT_AND_SUM = f"@llvm.fmuladd.v{LANES}f32"
SQUARE_DECLARATIONS = (
    f"declare float {_SUM}(float, {FLOAT})",
    f"declare {FLOAT} {_PRODUCT_AND_SUM}({FLOAT}, {FLOAT}, {FLOAT})",
)


def units_of(k: int) -> list[str]:
    """Return the lines that find the power of 2 at or below a sum, and half of its unit.

    The sum is %s0, %s1 and so on.
    """
    return [
        f"  %u{k}.bits = bitcast float %s{k} to i32",
        f"  %u{k}.exponent = and i32 %u{k}.bits, {_EXPONENT}",
        f"  %u{k}.power = bitcast i32 %u{k}.exponent to float",
        f"  %u{k}.half = fmul float %u{k}.power, {_HALF_A_UNIT}",
        f"  %u{k}.nothing = fcmp oeq float %u{k}.half, 0.0",
        f"  %u{k}.middle = select i1 %u{k}.nothing, float {_NAN}, float %u{k}.half",
        f"  %u{k}.twice = fadd float %u{k}.power, %u{k}.power",
        f"  %u{k}.none = fcmp oeq float %u{k}.power, 0.0",
        f"  %u{k}.limit = select i1 %u{k}.none, float {_LEAST}, float %u{k}.twice",
        *spread_lines(f"%power{k}", f"%u{k}.power", FLOAT),
        *spread_lines(f"%middle{k}", f"%u{k}.middle", FLOAT),
    ]


def carried(k: int) -> str:
    """Return what the loop over a piece carries of a sum: the units that are added to it."""
    return (
        f"  %units{k} = phi {FLOAT} [zeroinitializer, %piece], [%whole{k}, %loop],"
        f" [%mended{k}, %joined]"
    )


def add_units(writer: StepLines, values: dict[int, Sequence[str]]) -> list[str]:
    """Write what that loop does with vectors, and %some middles; return the blocks behind it.

    It adds the units of squares. The power of 2 and a square have the square in units in the last
    bits of their sum, since the power is an even number of units.

    Args:
        writer: Of the loop's lines.
        values: Of each sum the vectors that are squared, one or two.
    """
    some = ""
    for k, vectors in values.items():
        total, most = f"%units{k}", ""
        for number, value in enumerate(vectors):
            own = f"{k}.{number}"
            writer.new(_and_square(value, f"%power{k}"), f"%above{own}")
            units = writer.new(f"fsub {FLOAT} %above{own}, %power{k}")
            minus = writer.new(f"fneg {FLOAT} {units}")
            writer.new(_and_square(value, minus), f"%left{own}")
            size = f"call {FLOAT} @llvm.fabs.v{LANES}f32({FLOAT} %left{own})"
            size = writer.new(size, f"%size{own}")
            last = number == len(vectors) - 1
            total = writer.new(f"fadd {FLOAT} {total}, {units}", f"%whole{k}" if last else None)
            if most:
                more = writer.new(f"fcmp ogt {FLOAT} {most}, {size}")
                most = writer.new(f"select {MASK} {more}, {FLOAT} {most}, {FLOAT} {size}")
            most = most or size
        tied = writer.new(f"fcmp oeq {FLOAT} {most}, %middle{k}")
        some = writer.new(f"or {MASK} {some}, {tied}") if some else tied
    bits = writer.new(f"bitcast {MASK} {some} to {_BITS}")
    writer.new(f"icmp ne {_BITS} {bits}, 0", "%some")
    first, *others = values
    # no block between two turns, or what is made before would be kept in memory
    blocks = [
        "  %none = xor i1 %some, true",
        "  %again = and i1 %more, %none",
        "  br i1 %again, label %loop, label %leave",
        "leave:",
        f"  br i1 %some, label %tie{first}, label %judge",
    ]
    following = [*(f"tie{k}" for k in others), "joined"]
    for (k, vectors), after in zip(values.items(), following, strict=True):
        blocks += _ties(k, len(vectors), after)
    return [*blocks, "joined:", "  br i1 %more, label %loop, label %judge"]


def _and_square(value: str, other: str) -> str:
    """Return the instruction that adds the squares of float16, which float32 has, to a vector.

    It is one where a processor has such, which keeps the units free that only add.
    """
    return f"call {FLOAT} {_PRODUCT_AND_SUM}({FLOAT} {value}, {FLOAT} {value}, {FLOAT} {other})"


def after_a_piece(reduction: Reduction, writer: StepLines, kept: Sequence[int]) -> list[str]:
    """Return the blocks from ``judge`` on, which tell the sums behind a piece: up to ``pieced``.

    They are %kept0, %kept1 and so on. If one reaches the next power of 2, there may have been
    squares beyond, whose units are twice as large: then all are added as they come.

    Args:
        reduction: Whose values are squared.
        writer: Of its steps.
        kept: Which of them.
    """
    sums, before = [], "true"
    for k in kept:
        sums += [
            f"  %all{k} = call reassoc float {_SUM}(float 0.0, {FLOAT} %units{k}.after)",
            f"  %new{k} = fadd float %s{k}, %all{k}",
            f"  %below{k} = fcmp olt float %new{k}, %u{k}.limit",
            f"  %right{k} = and i1 {before}, %below{k}",
        ]
        before = f"%right{k}"
    writer.lines = []
    writer.values("%j", "g")
    for k in kept:
        value = writer.value(reduction.values[k])
        square = writer.new(f"fmul {FLOAT} {value}, {value}")
        writer.new(f"call float {_SUM}(float %one{k}, {FLOAT} {square})", f"%added{k}")
    serial, writer.lines = writer.lines, []
    return [
        "judge:",
        *(f"  %units{k}.after = phi {FLOAT} [%whole{k}, %leave], [%mended{k}, %joined]"
          for k in kept),
        *sums,
        f"  br i1 {before}, label %pieced, label %serial",
        "serial:",
        "  %j = phi i64 [%p, %judge], [%j.next, %serial]",
        *(f"  %one{k} = phi float [%s{k}, %judge], [%added{k}, %serial]" for k in kept),
        *serial,
        f"  %j.next = add i64 %j, {LANES}",
        "  %j.more = icmp ult i64 %j.next, %p.end",
        "  br i1 %j.more, label %serial, label %pieced",
        "pieced:",
        *(f"  %kept{k} = phi float [%new{k}, %judge], [%added{k}, %serial]" for k in kept),
    ]  # fmt: skip


def _ties(k: int, vectors: int, after: str) -> list[str]:
    """Return the blocks that mend what squares in the middle add: one unit off after odd sums."""
    width = LANES * vectors
    bits = f"i{width}"

    def tied(number: int) -> list[str]:
        size = f"%size{k}.{number}"
        return [f"  %ties{k}.{number} = fcmp oeq {FLOAT} {size}, %middle{k}"]

    def odd(number: int) -> list[str]:
        own = f"%own{k}.{number}"
        return [
            f"  {own}.last = bitcast {FLOAT} %above{k}.{number} to {INT}",
            f"  {own}.ones = and {INT} {own}.last, {splat(1)}",
            f"  {own} = icmp ne {INT} {own}.ones, zeroinitializer",
        ]

    prefixed, before = [], f"%own{k}"
    for power in range(width.bit_length() - 1):
        now = f"%upto{k}.{power}"
        prefixed += [
            f"  {now}.far = shl {bits} {before}, {1 << power}",
            f"  {now} = xor {bits} {before}, {now}.far",
        ]
        before = now
    mended, total = [], f"%whole{k}"
    for number in range(vectors):
        own, last = f"{k}.{number}", number == vectors - 1
        now = f"%mended{k}" if last else f"%mended{own}"
        mended += [
            f"  %unit{own} = fadd {FLOAT} %left{own}, %left{own}",
            f"  %mend{own} = select {MASK} %wrong{own}, {FLOAT} %unit{own},"
            f" {FLOAT} zeroinitializer",
            f"  {now} = fadd {FLOAT} {total}, %mend{own}",
        ]
        total = now
    return [
        f"tie{k}:",
        *(line for number in range(vectors) for line in (*tied(number), *odd(number))),
        *_bits_of(f"%ties{k}", vectors),
        *_bits_of(f"%own{k}", vectors),
        *prefixed,
        # the sum before is odd if its last bit is; if it is beyond the next power of 2, its piece
        # is added up otherwise
        f"  %past{k}.all = call reassoc float {_SUM}(float 0.0, {FLOAT} %units{k})",
        f"  %past{k}.sum = fadd float %s{k}, %past{k}.all",
        f"  %past{k}.bits = bitcast float %past{k}.sum to i32",
        f"  %past{k}.odd = trunc i32 %past{k}.bits to i1",
        f"  %past{k}.every = sext i1 %past{k}.odd to {bits}",
        f"  %sums{k} = xor {bits} {before}, %past{k}.every",
        f"  br label %walk{k}",
        f"walk{k}:",
        f"  %rest{k} = phi {bits} [%ties{k}, %tie{k}], [%rest{k}.next, %step{k}]",
        f"  %was{k} = phi i1 [false, %tie{k}], [%is{k}, %step{k}]",
        f"  %wrong{k} = phi {bits} [0, %tie{k}], [%wrong{k}.next, %step{k}]",
        f"  %none{k} = icmp eq {bits} %rest{k}, 0",
        f"  br i1 %none{k}, label %tied{k}, label %step{k}",
        f"step{k}:",
        f"  %rest{k}.less = sub {bits} 0, %rest{k}",
        f"  %bit{k} = and {bits} %rest{k}, %rest{k}.less",
        f"  %sum{k}.bit = and {bits} %sums{k}, %bit{k}",
        f"  %is{k} = icmp ne {bits} %sum{k}.bit, 0",
        f"  %differs{k} = xor i1 %is{k}, %was{k}",
        f"  %adds{k} = select i1 %differs{k}, {bits} %bit{k}, {bits} 0",
        f"  %wrong{k}.next = or {bits} %wrong{k}, %adds{k}",
        f"  %rest{k}.next = xor {bits} %rest{k}, %bit{k}",
        f"  br label %walk{k}",
        f"tied{k}:",
        *_masks_of(f"%wrong{k}", vectors),
        *mended,
        f"  br label %{after}",
    ]


def _bits_of(name: str, vectors: int) -> list[str]:
    """Return the lines that make bits of one or two masks, %NAME.0 and %NAME.1."""
    if vectors == 1:
        return [f"  {name} = bitcast {MASK} {name}.0 to {_BITS}"]
    both = f"<{2 * LANES} x i1>"
    places = ", ".join(f"i32 {place}" for place in range(2 * LANES))
    return [
        f"  {name}.both = shufflevector {MASK} {name}.0, {MASK} {name}.1,"
        f" <{2 * LANES} x i32> <{places}>",
        f"  {name} = bitcast {both} {name}.both to i{2 * LANES}",
    ]


def _masks_of(name: str, vectors: int) -> list[str]:
    """Return the lines that make masks of bits, as ``_bits_of`` has them."""
    if vectors == 1:
        return [f"  {name}.0 = bitcast {_BITS} {name} to {MASK}"]
    lines = []
    for number in range(vectors):
        own = f"{name}.{number}"
        lines += [
            f"  {own}.far = lshr i{2 * LANES} {name}, {LANES * number}",
            f"  {own}.bits = trunc i{2 * LANES} {own}.far to {_BITS}",
            f"  {own} = bitcast {_BITS} {own}.bits to {MASK}",
        ]
    return lines
