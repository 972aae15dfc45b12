"""Native code for the Mersenne Twister, whose numbers torch draws: 8 words of a state at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardmerge.engine.native import array_code, place_of
from shardmerge.methods.kernels.mersenne import USED_BITS, WORDS, Stretch

_MIDDLE, _LANES = 397, 8
_UPPER, _LOWER, _MATRIX = 0x80000000, 0x7FFFFFFF, 0x9908B0DF
#: (shift, whether to the left, mask) of what scrambles a word.
_SCRAMBLE = ((11, False, None), (7, True, 0x9D2C5680), (15, True, 0xEFC60000), (18, False, None))
#: Where words are made anew: (first, last, words at a time, where the word from the middle is).
#: A word is made of the next one and of one that is 397 on, of the next state from 227 on.
_STRETCHES = (
    (0, 224, _LANES, _MIDDLE),
    (224, 227, 1, _MIDDLE),
    (227, 619, _LANES, _MIDDLE - WORDS),
    (619, 623, 1, _MIDDLE - WORDS),
)


def native_fill(numbers: np.ndarray, stretches: Sequence[Stretch]) -> None:
    """Fill an array with the numbers of stretches, as ``kernels.mersenne`` does."""
    if not stretches:
        return
    rows = [(_place(start), skipped, made, _place(end)) for start, skipped, made, end in stretches]
    room = np.empty(WORDS + 1, np.uint32)
    array_code(states_text)(numbers, [room, np.array(rows, np.int64)], len(rows))


def _place(state: np.ndarray | None) -> int:
    return 0 if state is None else place_of(state)


def states_text() -> str:
    """Return the function in LLVM's assembly language."""
    body: list[str] = []
    before = "state"
    for number, stretch in enumerate(_STRETCHES):
        body += _loop(f"s{number}", *stretch[:3], before, _twisted(f"s{number}", *stretch[2:]))
        before = f"s{number}.end"
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %rows, ptr %constants, ptr %more) {",
        "entry:",
        "  %words = load ptr, ptr %leaves",
        "  %table.at = getelementptr ptr, ptr %leaves, i64 1",
        "  %table = load ptr, ptr %table.at",
        f"  %last = getelementptr i32, ptr %words, i64 {WORDS}",
        "  br label %row",
        "row:",
        "  %r = phi i64 [0, %entry], [%r.next, %row.end]",
        "  %out.now = phi ptr [%output, %entry], [%out.after, %row.end]",
        "  %row.at = getelementptr [4 x i64], ptr %table, i64 %r",
        *(line for k, name in enumerate(("start", "skipped", "made", "stop")) for line in (
            f"  %{name}.at = getelementptr i64, ptr %row.at, i64 {k}",
            f"  %{name} = load i64, ptr %{name}.at",
        )),
        "  %states = add i64 %skipped, %made",
        "  %starts = icmp ne i64 %start, 0",
        "  br i1 %starts, label %begin, label %begun",
        "begin:",
        "  %start.place = inttoptr i64 %start to ptr",
        *_loop("taken", 0, WORDS, _LANES, "begin", _moved("taken", "%start.place", "%words")),
        "  br label %begun",
        "begun:",
        "  br label %state",
        "state:",
        "  %n = phi i64 [0, %begun], [%n.next, %next]",
        "  %skips = icmp ult i64 %n, %skipped",
        "  %told.before = sub i64 %n, %skipped",
        f"  %offset = mul i64 %told.before, {WORDS}",
        "  %numbers = getelementptr i32, ptr %out.now, i64 %offset",
        *body,
        # the last word is made of the first, which is new
        "  %first = load i32, ptr %words",
        "  store i32 %first, ptr %last",
        *_loop("s4", WORDS - 1, WORDS, 1, before, _twisted("s4", 1, _MIDDLE - WORDS)),
        # what is skipped is not scrambled
        "  br i1 %skips, label %next, label %told",
        "told:",
        *_loop("out", 0, WORDS, _LANES, "told", _scrambled()),
        "  br label %next",
        "next:",
        "  %n.next = add i64 %n, 1",
        "  %n.more = icmp ult i64 %n.next, %states",
        "  br i1 %n.more, label %state, label %made.all",
        "made.all:",
        f"  %size = mul i64 %made, {WORDS}",
        "  %out.after = getelementptr i32, ptr %out.now, i64 %size",
        "  %stops = icmp ne i64 %stop, 0",
        "  br i1 %stops, label %keep, label %row.end",
        "keep:",
        "  %stop.place = inttoptr i64 %stop to ptr",
        *_loop("kept", 0, WORDS, _LANES, "keep", _moved("kept", "%words", "%stop.place")),
        "  br label %row.end",
        "row.end:",
        "  %r.next = add i64 %r, 1",
        "  %r.more = icmp ult i64 %r.next, %rows",
        "  br i1 %r.more, label %row, label %done",
        "done:",
        "  ret void",
        "}",
    ])  # fmt: skip


def _loop(
    name: str, first: int, last: int, lanes: int, before: str, body: Sequence[str]
) -> list[str]:
    """Return a loop over words, and the beginning of the block after it."""
    return [
        f"  br label %{name}",
        f"{name}:",
        f"  %{name}.i = phi i64 [{first}, %{before}], [%{name}.next, %{name}]",
        *body,
        f"  %{name}.next = add i64 %{name}.i, {lanes}",
        f"  %{name}.more = icmp ult i64 %{name}.next, {last}",
        f"  br i1 %{name}.more, label %{name}, label %{name}.end",
        f"{name}.end:",
    ]


def _kind(lanes: int) -> str:
    return f"<{lanes} x i32>"


def _splat(number: int, lanes: int) -> str:
    return "<" + ", ".join([f"i32 {number}"] * lanes) + ">"


def _moved(name: str, source: str, target: str) -> list[str]:
    """Return the lines that copy words."""
    kind = _kind(_LANES)
    return [
        f"  %{name}.from = getelementptr i32, ptr {source}, i64 %{name}.i",
        f"  %{name}.to = getelementptr i32, ptr {target}, i64 %{name}.i",
        f"  %{name}.words = load {kind}, ptr %{name}.from, align 4",
        f"  store {kind} %{name}.words, ptr %{name}.to, align 4",
    ]


def _loaded(name: str, part: str, lanes: int, distance: int) -> list[str]:
    """Return the lines that load words at a distance."""
    return [
        f"  %{name}.{part}.place = add i64 %{name}.i, {distance}",
        f"  %{name}.{part}.at = getelementptr i32, ptr %words, i64 %{name}.{part}.place",
        f"  %{name}.{part} = load {_kind(lanes)}, ptr %{name}.{part}.at, align 4",
    ]


def _twisted(name: str, lanes: int, middle: int) -> list[str]:
    """Return the lines that make words of the next state."""
    kind, n = _kind(lanes), f"%{name}"
    return [
        *_loaded(name, "own", lanes, 0),
        *_loaded(name, "near", lanes, 1),
        *_loaded(name, "far", lanes, middle),
        f"  {n}.high = and {kind} {n}.own, {_splat(_UPPER, lanes)}",
        f"  {n}.low = and {kind} {n}.near, {_splat(_LOWER, lanes)}",
        f"  {n}.word = or {kind} {n}.high, {n}.low",
        f"  {n}.half = lshr {kind} {n}.word, {_splat(1, lanes)}",
        f"  {n}.odd = and {kind} {n}.near, {_splat(1, lanes)}",
        f"  {n}.mask = sub {kind} zeroinitializer, {n}.odd",
        f"  {n}.matrix = and {kind} {n}.mask, {_splat(_MATRIX, lanes)}",
        f"  {n}.mixed = xor {kind} {n}.half, {n}.matrix",
        f"  {n}.made = xor {kind} {n}.mixed, {n}.far",
        f"  store {kind} {n}.made, ptr {n}.own.at, align 4",
    ]


def _scrambled() -> list[str]:
    """Return the lines that make numbers of a state's words."""
    kind, lines, value = _kind(_LANES), _loaded("out", "word", _LANES, 0), "%out.word"
    for step, (shift, left, mask) in enumerate(_SCRAMBLE):
        operation = "shl" if left else "lshr"
        moved = f"%out.moved{step}"
        lines.append(f"  {moved} = {operation} {kind} {value}, {_splat(shift, _LANES)}")
        if mask is not None:
            lines.append(f"  {moved}.some = and {kind} {moved}, {_splat(mask, _LANES)}")
            moved += ".some"
        lines.append(f"  %out.mixed{step} = xor {kind} {value}, {moved}")
        value = f"%out.mixed{step}"
    return [
        *lines,
        f"  %out.bits = and {kind} {value}, {_splat(USED_BITS, _LANES)}",
        "  %out.at = getelementptr i32, ptr %numbers, i64 %out.i",
        f"  store {kind} %out.bits, ptr %out.at, align 4",
    ]
