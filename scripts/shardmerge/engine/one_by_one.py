"""Native code that adds squares to a float32 number one after the other, many at a time.

Each sum is rounded, so the order counts. But as long as the sum stays between two powers of 2, it
is a multiple of one unit, and so is what each square adds to it: the square rounded to units. Such
multiples may be added up in any order. Only a square that lies in the middle between two multiples
needs to know the sum before it: the sum after it is even. So vectors are added up, and middles are
looked at one by one. Where the sum passes a power of 2, numbers are added as they come.
"""

from __future__ import annotations

from shardmerge.engine.assembly import FLOAT, INT, LANES, MASK, StepLines, splat, spread_lines
from shardmerge.methods.program import Reduction

#: Elements after which it is known whether the sum has passed a power of 2.
_PIECE = 1024
_BITS = f"i{LANES}"
#: Adds up a vector: from a number one after the other, or where any order does.
_SUM = f"@llvm.vector.reduce.fadd.v{LANES}f32"
_EXPONENT, _HALF_A_UNIT, _NAN = 0x7F800000, "0x3E70000000000000", "0x7FF8000000000000"
SQUARE_DECLARATIONS = (f"declare float {_SUM}(float, {FLOAT})",)


def number_blocks(reduction: Reduction, writer: StepLines) -> list[str]:
    """Return the blocks that add the squares of the elements from %begin to %stop.

    They begin with ``piece``, behind ``row``, and go on to ``rowed`` where the sums are %kept0,
    %kept1 and so on; before they are %before0 and so on.

    Args:
        reduction: Whose values are squared.
        writer: Of its steps.
    """
    kept = range(len(reduction.values))
    fast, serial = _fast(reduction, writer), _serial(reduction, writer)
    return [
        "piece:",
        "  %p = phi i64 [%begin, %row], [%p.end, %pieced]",
        *(f"  %s{k} = phi float [%before{k}, %row], [%kept{k}, %pieced]" for k in kept),
        f"  %p.far = add i64 %p, {_PIECE}",
        "  %p.inside = icmp ult i64 %p.far, %stop",
        "  %p.end = select i1 %p.inside, i64 %p.far, i64 %stop",
        *(line for k in kept for line in _units(k)),
        "  br label %fast",
        *fast,
        "check:",
        *(line for k in kept for line in (
            f"  %all{k} = call reassoc float {_SUM}(float 0.0, {FLOAT} %v{k}.after)",
            f"  %new{k} = fadd float %s{k}, %all{k}",
            f"  %twice{k} = fadd float %u{k}.power, %u{k}.power",
            f"  %below{k} = fcmp ole float %new{k}, %twice{k}",
            f"  %right{k + 1} = and i1 {f'%right{k}' if k else 'true'}, %below{k}",
        )),
        f"  br i1 %right{len(kept)}, label %pieced, label %serial",
        *serial,
        "pieced:",
        *(f"  %kept{k} = phi float [%new{k}, %check], [%added{k}, %serial]" for k in kept),
        "  %p.more = icmp ult i64 %p.end, %stop",
        "  br i1 %p.more, label %piece, label %rowed",
    ]  # fmt: skip


def _units(k: int) -> list[str]:
    """Return the lines that find the power of 2 at or below a sum, and half of its unit."""
    return [
        f"  %u{k}.bits = bitcast float %s{k} to i32",
        f"  %u{k}.exponent = and i32 %u{k}.bits, {_EXPONENT}",
        f"  %u{k}.power = bitcast i32 %u{k}.exponent to float",
        f"  %u{k}.half = fmul float %u{k}.power, {_HALF_A_UNIT}",
        f"  %u{k}.nothing = fcmp oeq float %u{k}.half, 0.0",
        f"  %u{k}.middle = select i1 %u{k}.nothing, float {_NAN}, float %u{k}.half",
        f"  %u{k}.odd = and i32 %u{k}.bits, 1",
        *spread_lines(f"%power{k}", f"%u{k}.power", FLOAT),
        *spread_lines(f"%middle{k}", f"%u{k}.middle", FLOAT),
    ]


def _squares(reduction: Reduction, writer: StepLines, at: str, prefix: str) -> list[str]:
    """Write the squares of a vector; return their names."""
    writer.values(at, prefix)
    values = map(writer.value, reduction.values)
    return [writer.new(f"fmul {FLOAT} {value}, {value}") for value in values]


def _fast(reduction: Reduction, writer: StepLines) -> list[str]:
    """Return the blocks that add up whole units, vector by vector.

    The power of 2 and a square have the square in units in the last bits of their sum, since the
    power is an even number of units.
    """
    kept, writer.lines = range(len(reduction.values)), []
    squares = _squares(reduction, writer, "%i", "f")
    for k, square in enumerate(squares):
        above = writer.new(f"fadd {FLOAT} %power{k}, {square}")
        units = writer.new(f"fsub {FLOAT} {above}, %power{k}")
        left = writer.new(f"fsub {FLOAT} {square}, {units}", f"%left{k}")
        size = writer.new(f"call {FLOAT} @llvm.fabs.v{LANES}f32({FLOAT} {left})")
        between = writer.new(f"fcmp oeq {FLOAT} {size}, %middle{k}")
        writer.new(f"bitcast {MASK} {between} to {_BITS}", f"%ties{k}")
        writer.new(f"fadd {FLOAT} %v{k}, {units}", f"%v{k}.whole")
        writer.new(f"bitcast {FLOAT} {above} to {INT}", f"%last{k}")
        writer.new(f"xor {INT} %x{k}, %last{k}", f"%x{k}.after")
    some = "%ties0"
    for k in kept[1:]:
        some = writer.new(f"or {_BITS} {some}, %ties{k}")
    end = f"tied{kept[-1]}"
    return [
        "fast:",
        "  %i = phi i64 [%p, %piece], [%i.next, %joined]",
        *(line for k in kept for line in (
            f"  %v{k} = phi {FLOAT} [zeroinitializer, %piece], [%v{k}.after, %joined]",
            f"  %x{k} = phi {INT} [zeroinitializer, %piece], [%x{k}.after, %joined]",
            f"  %odd{k} = phi i32 [%u{k}.odd, %piece], [%odd{k}.after, %joined]",
        )),
        *writer.lines,
        f"  %some = icmp ne {_BITS} {some}, 0",
        "  br i1 %some, label %tie0, label %joined",
        *(line for k in kept for line in _ties(k, f"tie{k + 1}" if k < kept[-1] else "joined")),
        "joined:",
        *(line for k in kept for line in (
            f"  %v{k}.after = phi {FLOAT} [%v{k}.whole, %fast], [%v{k}.mended, %{end}]",
            f"  %odd{k}.after = phi i32 [%odd{k}, %fast], [%odd{k}.mended, %{end}]",
        )),
        f"  %i.next = add i64 %i, {LANES}",
        "  %i.more = icmp ult i64 %i.next, %p.end",
        "  br i1 %i.more, label %fast, label %check",
    ]  # fmt: skip


def _ties(k: int, after: str) -> list[str]:
    """Return the blocks that mend what squares in the middle add: one unit off after odd sums."""
    ones = f"and {INT} {{}}, {splat(1)}"
    prefixed = []
    for power in range(LANES.bit_length() - 1):
        before = f"%q{k}.{power}"
        prefixed += [
            f"  {before}.far = shl {_BITS} {before}, {1 << power}",
            f"  %q{k}.{power + 1} = xor {_BITS} {before}, {before}.far",
        ]
    return [
        f"tie{k}:",
        f"  %own{k}.ones = {ones.format(f'%last{k}')}",
        f"  %own{k}.mask = icmp ne {INT} %own{k}.ones, zeroinitializer",
        f"  %q{k}.0 = bitcast {MASK} %own{k}.mask to {_BITS}",
        *prefixed,
        f"  %past{k}.ones = {ones.format(f'%x{k}')}",
        f"  %past{k}.mask = icmp ne {INT} %past{k}.ones, zeroinitializer",
        f"  %past{k}.bits = bitcast {MASK} %past{k}.mask to {_BITS}",
        f"  %past{k}.count = call {_BITS} @llvm.ctpop.{_BITS}({_BITS} %past{k}.bits)",
        f"  %past{k}.all = xor i32 %past{k}.count, %odd{k}",
        f"  %past{k}.odd = and i32 %past{k}.all, 1",
        f"  %past{k}.every = sub i32 0, %past{k}.odd",
        f"  %sums{k} = xor {_BITS} %q{k}.{LANES.bit_length() - 1}, %past{k}.every",
        f"  br label %walk{k}",
        f"walk{k}:",
        f"  %rest{k} = phi {_BITS} [%ties{k}, %tie{k}], [%rest{k}.next, %step{k}]",
        f"  %was{k} = phi i1 [false, %tie{k}], [%is{k}, %step{k}]",
        f"  %wrong{k} = phi {_BITS} [0, %tie{k}], [%wrong{k}.next, %step{k}]",
        f"  %none{k} = icmp eq {_BITS} %rest{k}, 0",
        f"  br i1 %none{k}, label %tied{k}, label %step{k}",
        f"step{k}:",
        f"  %rest{k}.less = sub {_BITS} 0, %rest{k}",
        f"  %bit{k} = and {_BITS} %rest{k}, %rest{k}.less",
        f"  %sum{k}.bit = and {_BITS} %sums{k}, %bit{k}",
        f"  %is{k} = icmp ne {_BITS} %sum{k}.bit, 0",
        f"  %differs{k} = xor i1 %is{k}, %was{k}",
        f"  %adds{k} = select i1 %differs{k}, {_BITS} %bit{k}, {_BITS} 0",
        f"  %wrong{k}.next = or {_BITS} %wrong{k}, %adds{k}",
        f"  %rest{k}.next = xor {_BITS} %rest{k}, %bit{k}",
        f"  br label %walk{k}",
        f"tied{k}:",
        f"  %wrong{k}.mask = bitcast {_BITS} %wrong{k} to {MASK}",
        f"  %unit{k} = fadd {FLOAT} %left{k}, %left{k}",
        f"  %mend{k} = select {MASK} %wrong{k}.mask, {FLOAT} %unit{k}, {FLOAT} zeroinitializer",
        f"  %v{k}.mended = fadd {FLOAT} %v{k}.whole, %mend{k}",
        f"  %wrong{k}.count = call {_BITS} @llvm.ctpop.{_BITS}({_BITS} %wrong{k})",
        f"  %odd{k}.mended = xor i32 %odd{k}, %wrong{k}.count",
        f"  br label %{after}",
    ]


def _serial(reduction: Reduction, writer: StepLines) -> list[str]:
    """Return the block that adds a piece's squares as they come."""
    kept, writer.lines = range(len(reduction.values)), []
    for k, square in enumerate(_squares(reduction, writer, "%j", "g")):
        writer.new(f"call float {_SUM}(float %one{k}, {FLOAT} {square})", f"%added{k}")
    return [
        "serial:",
        "  %j = phi i64 [%p, %check], [%j.next, %serial]",
        *(f"  %one{k} = phi float [%s{k}, %check], [%added{k}, %serial]" for k in kept),
        *writer.lines,
        f"  %j.next = add i64 %j, {LANES}",
        "  %j.more = icmp ult i64 %j.next, %p.end",
        "  br i1 %j.more, label %serial, label %pieced",
    ]
