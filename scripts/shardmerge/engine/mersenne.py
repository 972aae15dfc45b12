"""Native code for the Mersenne Twister, whose numbers torch draws: 8 words of a state at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardmerge.engine.native import array_code
from shardmerge.methods.kernels.mersenne import WORDS

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


def native_fill(state: np.ndarray, numbers: np.ndarray, skipped: int = 0) -> None:
    """Fill an array with numbers after a state, as ``kernels.mersenne`` does."""
    room = np.append(state, np.uint32(0))
    array_code(states_text)(numbers, [room], skipped + len(numbers) // WORDS, [skipped])
    state[:] = room[:WORDS]


def states_text() -> str:
    """Return the function in LLVM's assembly language."""
    body: list[str] = []
    before = "state"
    for number, stretch in enumerate(_STRETCHES):
        body += _loop(f"s{number}", *stretch[:3], before, _twisted(f"s{number}", *stretch[2:]))
        before = f"s{number}.end"
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %states, ptr %constants, ptr %more) {",
        "entry:",
        "  %words = load ptr, ptr %leaves",
        f"  %last = getelementptr i32, ptr %words, i64 {WORDS}",
        "  %skipped = load i64, ptr %more",
        "  br label %state",
        "state:",
        "  %n = phi i64 [0, %entry], [%n.next, %next]",
        "  %skips = icmp ult i64 %n, %skipped",
        "  %made = sub i64 %n, %skipped",
        f"  %offset = mul i64 %made, {WORDS}",
        "  %numbers = getelementptr i32, ptr %output, i64 %offset",
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
        "  br i1 %n.more, label %state, label %done",
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
        "  %out.at = getelementptr i32, ptr %numbers, i64 %out.i",
        f"  store {kind} {value}, ptr %out.at, align 4",
    ]
