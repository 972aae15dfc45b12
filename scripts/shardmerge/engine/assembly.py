"""Steps as lines of LLVM's assembly language: what is done with one vector of elements.

Operations on vectors of a fixed length are written out, so that LLVM only has to choose
instructions: it may neither fuse nor reorder them, and the bits are the same on every processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardmerge.methods.passes import (
    BIAS,
    MANTISSA,
    ROOT_OF_HALF,
    SINGLE_BIAS,
    SINGLE_MANTISSA,
)
from shardmerge.methods.program import CONSTANTS, LANES, WITH_CONSTANT, Program, Reduction

#: What an element is in memory, by type code.
_ELEMENT = {"F16": "half", "BF16": "i16", "F32": "float", "F64": "double", "U32": "i32"}
STORED = {code: f"<{LANES} x {element}>" for code, element in _ELEMENT.items()}
_HALF, _BITS, FLOAT, DOUBLE, INT = STORED.values()
MASK, _LONG = f"<{LANES} x i1>", f"<{LANES} x i64>"
_OPERATIONS = {"sub": "fsub", "add": "fadd", "mul": "fmul", "div": "fdiv", "plus": "fadd"}
_OPERATIONS |= {"times": "fmul", "over": "fdiv"}
_COMPARISONS = {name: f"fcmp o{name}" for name in ("gt", "ge", "lt", "eq")}
_COMPARISONS |= {"ne": "fcmp une"}
# the least key may be one more than all, which has the sign's bit
_COMPARISONS |= {"at least": "icmp uge", "at most": "icmp sle"}
#: How a constant, which lies in memory as float64, becomes one of another type.
_CONSTANT = {
    "F32": ("  %c{k}.one = fptrunc double %c{k}.wide to float",),
    "F64": ("  %c{k}.one = fadd double %c{k}.wide, -0.0",),
    "U32": (
        "  %c{k}.long = fptosi double %c{k}.wide to i64",
        "  %c{k}.one = trunc i64 %c{k}.long to i32",
    ),
}


def vector_of(value: int, kind: str, count: int = LANES) -> str:
    """Return a vector of one integer of a type."""
    return "<" + ", ".join([f"{kind} {value}"] * count) + ">"


def splat(value: int) -> str:
    """Return a vector of one integer."""
    return vector_of(value, "i32")


def _splat_long(value: int) -> str:
    return vector_of(value, "i64")


def element(kind: str) -> str:
    """Return the type of a vector's elements."""
    return kind.rpartition(" ")[2].rstrip(">") if kind.startswith("<") else kind


def inserted(one: str, kind: str = INT) -> str:
    """Return the instruction that makes a vector whose first element is a number."""
    return f"insertelement {kind} poison, {element(kind)} {one}, i64 0"


def repeated(vector: str, kind: str = INT) -> str:
    """Return the instruction that makes a vector of a vector's first element."""
    places = kind.replace(f" x {element(kind)}", " x i32")
    return f"shufflevector {kind} {vector}, {kind} poison, {places} zeroinitializer"


def spread_lines(name: str, one: str, kind: str = INT) -> list[str]:
    """Return the lines that make a vector of one number."""
    return [
        f"  {name}.first = {inserted(one, kind)}",
        f"  {name} = {repeated(f'{name}.first', kind)}",
    ]


def short_lines(name: str, array: str, place: int) -> list[str]:
    """Return the lines that load a number of 32 bits of an array of 64 bits each."""
    return [
        f"  {name}.at = getelementptr i64, ptr {array}, i64 {place}",
        f"  {name}.long = load i64, ptr {name}.at",
        f"  {name} = trunc i64 {name}.long to i32",
    ]


class StepLines:
    """Lines of a function. Values are ``%v0``, ``%v1`` and so on, with a prefix.

    Args:
        program: What the steps are taken of.
    """

    def __init__(self, program: Program | Reduction) -> None:
        self._program = program
        self._in_row = isinstance(program, Reduction) and program.in_row
        self._names = 0
        self._prefix, self._at = "v", "%i"
        self._rows: dict[int, str] = {}
        self._types: dict[str, str] = {}
        # of values that are one number in a whole vector, that number
        self._same: dict[str, str] = {}
        self.lines: list[str] = []

    def entry(self) -> list[str]:
        """Load the leaves' addresses and the constants."""
        program = self._program
        lines = []
        for k in range(len(program.leaves) + len(program.loads) + len(program.tables)):
            lines += [
                f"  %leaf{k}.at = getelementptr ptr, ptr %leaves, i64 {k}",
                f"  %leaf{k} = load ptr, ptr %leaf{k}.at",
            ]
        used = {step[1][1]: "F32" for step in program.steps if step[0] in WITH_CONSTANT}
        used |= {step[1][0]: CONSTANTS[step[0]] for step in program.steps if step[0] in CONSTANTS}
        for k in sorted({k for of in self._row_steps() for k in of[1:]}):
            lines += [
                f"  %c{k}.at = getelementptr double, ptr %constants, i64 {k}",
                f"  %c{k}.wide = load double, ptr %c{k}.at",
                f"  %c{k} = fptosi double %c{k}.wide to i64",
            ]
        if self._in_row:
            lines += [line for of in self._row_steps() for line in self._number_lines(*of)]
        for k, code in sorted(used.items()):
            lines += [
                f"  %c{k}.at = getelementptr double, ptr %constants, i64 {k}",
                f"  %c{k}.wide = load double, ptr %c{k}.at",
                *(line.format(k=k) for line in _CONSTANT[code]),
                *spread_lines(f"%c{k}", f"%c{k}.one", STORED[code]),
            ]
        return lines

    def values(self, at: str = "%i", prefix: str = "v") -> None:
        """Write the steps for the vector of elements that begins at an index.

        Args:
            at: The index.
            prefix: Of the values' names.
        """
        program = self._program
        self._prefix, self._at, self._rows = prefix, at, {}
        for k, code in enumerate(program.leaves):
            self._load(k, code, self.value(k))
        for k, (name, operands) in enumerate(program.steps, len(program.leaves)):
            self._step(name, operands, self.value(k))

    def value(self, number: int) -> str:
        """Return the name of a value."""
        return f"%{self._prefix}{number}"

    def new(self, text: str, name: str | None = None) -> str:
        """Write a line that makes a value; return its name."""
        self._names += 1
        name = name or f"%t{self._names}"
        self.lines.append(f"  {name} = {text}")
        return name

    def place(self, base: str, code: str, at: str = "%i") -> str:
        """Write the address of an element."""
        return self.new(f"getelementptr {_ELEMENT[code]}, ptr {base}, i64 {at}")

    def typed(self, name: str) -> str:
        """Return a value's name with its type before it."""
        return f"{self._types.get(name, FLOAT)} {name}"

    def _load(self, leaf: int, code: str, name: str) -> None:
        if code == "BIT":
            byte = self.new(f"lshr i64 {self._at}, 3")
            place = self.new(f"getelementptr i8, ptr %leaf{leaf}, i64 {byte}")
            bits = self.new(f"load i{LANES}, ptr {place}, align 1")
            self._types[name] = MASK
            self.new(f"bitcast i{LANES} {bits} to {MASK}", name)
            return
        stored = self.new(
            f"load {STORED[code]}, ptr {self.place(f'%leaf{leaf}', code, self._at)}, align 1"
        )
        if code in ("U32", "F64"):
            self._types[name] = STORED[code]
            self.new(f"bitcast {STORED[code]} {stored} to {STORED[code]}", name)
        else:
            self.widen(stored, code, name)

    def widen(self, stored: str, code: str, name: str | None = None) -> str:
        """Write float32 of what lies in memory."""
        if code == "F16":
            return self.new(f"fpext {_HALF} {stored} to {FLOAT}", name)
        if code == "BF16":
            bits = self.new(f"zext {_BITS} {stored} to {INT}")
            bits = self.new(f"shl {INT} {bits}, {splat(16)}")
            return self.new(f"bitcast {INT} {bits} to {FLOAT}", name)
        return self.new(f"bitcast {FLOAT} {stored} to {FLOAT}", name)

    def narrow(self, value: str, code: str) -> tuple[str, str]:
        """Write float32 rounded to what lies in memory, and as float32 again."""
        if code == "F32":
            return value, value
        if code == "F16":
            stored = self.new(f"fptrunc {FLOAT} {value} to {_HALF}")
            return stored, self.widen(stored, code)
        # Half of the last kept bit's value less one, plus that bit, carries where it must. By
        # integers: instructions for bfloat16 take subnormal numbers for 0.
        bits = self.new(f"bitcast {FLOAT} {value} to {INT}")
        last = self.new(f"lshr {INT} {bits}, {splat(16)}")
        last = self.new(f"and {INT} {last}, {splat(1)}")
        added = self.new(f"add {INT} {bits}, {splat(0x7FFF)}")
        added = self.new(f"add {INT} {added}, {last}")
        nan = self.new(f"fcmp uno {FLOAT} {value}, {value}")
        added = self.new(f"select {MASK} {nan}, {INT} {splat(0x7FC00000)}, {INT} {added}")
        added = self.new(f"lshr {INT} {added}, {splat(16)}")
        stored = self.new(f"trunc {INT} {added} to {_BITS}")
        return stored, self.widen(stored, code)

    def _step(self, name: str, operands: Sequence[int], value: str) -> None:
        kind, _, code = name.partition(" ") if name not in _COMPARISONS else (name, "", "")
        first = self.value(operands[0]) if operands else ""
        of = self._types.get(first, FLOAT)
        if kind == "round":
            _, wide = self.narrow(first, code)
            self.new(f"bitcast {FLOAT} {wide} to {FLOAT}", value)
        elif kind == "zero":
            self.new(f"bitcast {FLOAT} zeroinitializer to {FLOAT}", value)
        elif kind == "full":
            self._types[value] = STORED[code]
            self._same[value] = f"%c{operands[0]}.one"
            self.new(f"bitcast {STORED[code]} %c{operands[0]} to {STORED[code]}", value)
        elif kind == "load":
            leaf = len(self._program.leaves) + operands[0]
            self._load(leaf, self._program.loads[operands[0]], value)
        elif kind == "row":
            self._row(*operands, value)
        elif kind == "fma":
            factor, constant, other = operands
            self.new(
                f"call {FLOAT} @llvm.fma.v{LANES}f32({FLOAT} {self.value(factor)}, "
                f"{FLOAT} %c{constant}, {FLOAT} {self.value(other)})",
                value,
            )
        elif kind == "abs":
            self._types[value] = of
            bits = "f32" if of == FLOAT else "f64"
            self.new(f"call {of} @llvm.fabs.v{LANES}{bits}({of} {first})", value)
        elif kind == "wide":
            self._types[value] = DOUBLE
            if first in self._same:
                self._same[value] = self.new(f"fpext float {self._same[first]} to double")
            self.new(f"fpext {FLOAT} {first} to {DOUBLE}", value)
        elif kind == "single":
            if first in self._same:
                self._spread(self.new(f"fptrunc double {self._same[first]} to float"), FLOAT, value)
            else:
                self.new(f"fptrunc {DOUBLE} {first} to {FLOAT}", value)
        elif kind == "key":
            self._types[value] = INT
            bits = self.new(f"bitcast {FLOAT} {first} to {INT}")
            self.new(f"and {INT} {bits}, {splat(0x7FFFFFFF)}", value)
        elif kind in ("exponent", "mantissa"):
            self._types[value] = DOUBLE
            getattr(self, f"_{kind}")(first, value)
        elif kind == "power":
            self._types[value] = of
            self._power(first, of, value)
        elif kind == "select":
            yes, no = (self.typed(self.value(k)) for k in operands[1:])
            self._types[value] = self._types.get(self.value(operands[1]), FLOAT)
            self.new(f"select {MASK} {first}, {yes}, {no}", value)
        elif kind in _COMPARISONS:
            self._types[value] = MASK
            second = self.value(operands[1])
            self.new(f"{_COMPARISONS[kind]} {of} {first}, {second}", value)
        elif kind == "and":
            self._types[value] = MASK
            self.new(f"and {MASK} {first}, {self.value(operands[1])}", value)
        elif kind not in WITH_CONSTANT and {*map(self.value, operands)} <= self._same.keys():
            both = ", ".join(self._same[self.value(one)] for one in operands)
            self._spread(self.new(f"{_OPERATIONS[kind]} {element(of)} {both}"), of, value)
        else:
            self._types[value] = of
            second = f"%c{operands[1]}" if kind in WITH_CONSTANT else self.value(operands[1])
            self.new(f"{_OPERATIONS[kind]} {of} {first}, {second}", value)

    def _row_steps(self) -> list[tuple[int, ...]]:
        """Return what each step that names a row's number is made of, without repetition."""
        return sorted({of for name, of in self._program.steps if name == "row"})

    def _table(self, table: int) -> tuple[str, str]:
        """Return the code of a table's type, and the name of its address."""
        program = self._program
        return program.tables[table], f"%leaf{len(program.leaves) + len(program.loads) + table}"

    def _number_lines(self, table: int, first: int, length: int) -> list[str]:
        """Return the lines that load the number of the one row that is gone through."""
        code, leaf = self._table(table)
        name = f"%number{table}.{length}"
        return [
            f"  {name}.row = udiv i64 %c{first}, %c{length}",
            f"  {name}.at = getelementptr {_ELEMENT[code]}, ptr {leaf}, i64 {name}.row",
            f"  {name} = load {_ELEMENT[code]}, ptr {name}.at",
        ]

    def _row(self, table: int, first: int, length: int, value: str) -> None:
        """Write a vector of the number of the row that it lies in."""
        code, leaf = self._table(table)
        if self._in_row:
            self._spread(f"%number{table}.{length}", STORED[code], value)
            return
        if length not in self._rows:
            place = self.new(f"add i64 {self._at}, %c{first}")
            self._rows[length] = self.new(f"udiv i64 {place}, %c{length}")
        place = self.place(leaf, code, self._rows[length])
        self._spread(self.new(f"load {_ELEMENT[code]}, ptr {place}"), STORED[code], value)

    def _spread(self, one: str, kind: str, value: str) -> None:
        """Write a vector of one number."""
        self._types[value], self._same[value] = kind, one
        self.new(repeated(self.new(inserted(one, kind)), kind), value)

    def _exponent(self, of: str, value: str) -> None:
        # without a sign, as the last bits of a number between 2**52 and 2**53: processors that
        # have no shift of signed 64 bits, nor make float64 of them, do both as fast as others
        above = self.new(f"add {_LONG} {self._near_one(of)[1]}, {_splat_long(BIAS << MANTISSA)}")
        biased = self.new(f"lshr {_LONG} {above}, {_splat_long(MANTISSA)}")
        bits = self.new(f"or {_LONG} {biased}, {_splat_long(BIAS + MANTISSA << MANTISSA)}")
        raised = self.new(f"bitcast {_LONG} {bits} to {DOUBLE}")
        one = f"double {float(2**MANTISSA + BIAS)}"
        self.new(f"fsub {DOUBLE} {raised}, <{', '.join([one] * LANES)}>", value)

    def _mantissa(self, of: str, value: str) -> None:
        bits, above = self._near_one(of)
        exponent = self.new(f"and {_LONG} {above}, {_splat_long(-1 << MANTISSA)}")
        bits = self.new(f"sub {_LONG} {bits}, {exponent}")
        self.new(f"bitcast {_LONG} {bits} to {DOUBLE}", value)

    def _power(self, of: str, kind: str, value: str) -> None:
        bias, mantissa, whole = BIAS, MANTISSA, _LONG
        if kind == FLOAT:
            bias, mantissa, whole = SINGLE_BIAS, SINGLE_MANTISSA, INT
        # the integer is in the last bits; fptosi is not defined for NaN
        bits = self.new(f"bitcast {kind} {of} to {whole}")
        bits = self.new(f"add {whole} {bits}, {vector_of(bias, element(whole))}")
        bits = self.new(f"shl {whole} {bits}, {vector_of(mantissa, element(whole))}")
        self.new(f"bitcast {whole} {bits} to {kind}", value)

    def _near_one(self, of: str) -> tuple[str, str]:
        """Write a float64's bits, and those above the square root of 1/2: in units of 2**52 the
        power of 2 that brings it near 1, rounded down."""
        bits = self.new(f"bitcast {DOUBLE} {of} to {_LONG}")
        return bits, self.new(f"sub {_LONG} {bits}, {_splat_long(ROOT_OF_HALF)}")


DECLARATIONS = [
    f"declare {FLOAT} @llvm.fma.v{LANES}f32({FLOAT}, {FLOAT}, {FLOAT})",
    f"declare {FLOAT} @llvm.fabs.v{LANES}f32({FLOAT})",
    f"declare {DOUBLE} @llvm.fabs.v{LANES}f64({DOUBLE})",
    f"declare i{LANES} @llvm.cttz.i{LANES}(i{LANES}, i1)",
    f"declare i{LANES} @llvm.ctpop.i{LANES}(i{LANES})",
]


def each_bit(
    name: str,
    bits: str,
    before: str,
    body: Sequence[str],
    after: str,
    carried: Sequence[str] = (),
    whole: str = f"i{LANES}",
) -> list[str]:
    """Return a block that goes through the places of set bits, of which there is one at least.

    Args:
        name: Of the block; a bit's place is %NAME.lane.
        bits: Of the places.
        before, after: The blocks before and behind it.
        body: What is done for each place.
        carried: Values that go from one place to the next.
        whole: The type of the bits.
    """
    own = f"%{name}"
    return [
        f"{name}:",
        f"  {own}.left = phi {whole} [{bits}, %{before}], [{own}.rest, {own}]",
        *carried,
        f"  {own}.lane = call {whole} @llvm.cttz.{whole}({whole} {own}.left, i1 true)",
        *body,
        f"  {own}.less = sub {whole} {own}.left, 1",
        f"  {own}.rest = and {whole} {own}.left, {own}.less",
        f"  {own}.again = icmp ne {whole} {own}.rest, 0",
        f"  br i1 {own}.again, label {own}, label %{after}",
    ]


def loop_text(
    head: str,
    entry: Sequence[str],
    carried: Sequence[str],
    lines: Sequence[str],
    done: Sequence[str],
    end: str = "loop",
) -> str:
    """Return a function that goes through all elements, a vector at a time.

    Args:
        head: Its first line.
        entry: What is done before.
        carried: Values that go from one turn to the next.
        lines: What is done for a vector.
        done: What is done at the end.
        end: The block in which these lines end.
    """
    return "\n".join([
        head,
        "entry:",
        *entry,
        "  br label %loop",
        "loop:",
        f"  %i = phi i64 [0, %entry], [%after, %{end}]",
        *carried,
        *lines,
        f"  %after = add i64 %i, {LANES}",
        "  %more = icmp ult i64 %after, %count",
        "  br i1 %more, label %loop, label %done",
        "done:",
        *done,
        "  ret void",
        "}",
        *DECLARATIONS,
    ])  # fmt: skip


def next_row(block: str) -> list[str]:
    """Return the last blocks of a function that goes through %rows rows from ``row`` on.

    Args:
        block: Where a row ends.
    """
    return [
        f"{block}:",
        "  %r.next = add i64 %r, 1",
        "  %r.more = icmp ult i64 %r.next, %rows",
        "  br i1 %r.more, label %row, label %done",
        "done:",
        "  ret void",
        "}",
    ]


def rows_text(
    head: str,
    entry: Sequence[str],
    begin: Sequence[str],
    carried: Sequence[str],
    lines: Sequence[str],
    stop: str,
    after: Sequence[str],
    end: str = "loop",
) -> str:
    """Return a function that goes through rows of %count elements, a vector at a time.

    Args:
        head: Its first line; %extra has the number of rows.
        entry: What is done before.
        begin: What is done before a row, of which %r is the number.
        carried: Values that go from one vector of a row to the next.
        lines: What is done for a vector, which is %i in the row, and %at in all.
        stop: The first element of a row that is no more gone through.
        after: The blocks behind a row, from ``fold0`` on; the last goes on to ``end``.
        end: The block in which the lines end.
    """
    return "\n".join([
        head,
        "entry:",
        *entry,
        "  br label %row",
        "row:",
        "  %r = phi i64 [0, %entry], [%r.next, %end]",
        "  %begin = mul i64 %r, %count",
        *begin,
        "  br label %loop",
        "loop:",
        f"  %i = phi i64 [0, %row], [%after, %{end}]",
        *carried,
        "  %at = add i64 %begin, %i",
        *lines,
        f"  %after = add i64 %i, {LANES}",
        f"  %again = icmp ult i64 %after, {stop}",
        "  br i1 %again, label %loop, label %fold0",
        *after,
        *next_row("end"),
        *DECLARATIONS,
    ])  # fmt: skip
