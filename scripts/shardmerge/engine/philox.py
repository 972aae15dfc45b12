"""Native code for Philox, the generator of random streams: four words of 64 bits for a counter."""

from __future__ import annotations

from functools import partial

import numpy as np

from shardmerge.engine.native import array_code
from shardmerge.methods.kernels.keys import DRAWS, Key, RandomStream
from shardmerge.methods.symbolic import Made

#: Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405: Philox4x64 with 10 rounds.
_ROUNDS = 10
_FACTORS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_WORD = (1 << 64) - 1


def native_stream(load: Made) -> Made:
    """Return what makes the same numbers, by native code if it is a random stream."""
    return partial(_numbers, load.key) if isinstance(load, RandomStream) else load


def _numbers(key: Key, first: int, count: int) -> np.ndarray:
    """Return part of a stream as ``kernels.keys.draws`` does, uint32 [count]."""
    counter, skip = divmod(first, DRAWS)
    counters = -(-(skip + count) // DRAWS)
    made = np.empty((counters, DRAWS), np.uint32)
    keys = [(part + turn * step) & _WORD for turn in range(_ROUNDS)
            for part, step in zip(key, _STEPS, strict=True)]  # fmt: skip
    given = np.array([counter, *keys], np.uint64)
    array_code(stream_text)(made, [given], counters)
    return made.reshape(-1)[skip : skip + count]


def stream_text() -> str:
    """Return the function in LLVM's assembly language."""
    keys = range(2 * _ROUNDS)
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %more) {",
        "entry:",
        "  %given = load ptr, ptr %leaves",
        "  %begin = load i64, ptr %given",
        *(f"  %key{k}.at = getelementptr i64, ptr %given, i64 {k + 1}\n"
          f"  %key{k} = load i64, ptr %key{k}.at" for k in keys),
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [0, %entry], [%after, %loop]",
        "  %w0.0 = add i64 %begin, %i",
        *(f"  %w{k}.0 = add i64 0, 0" for k in (1, 2, 3)),
        *(line for turn in range(_ROUNDS) for line in _round(turn)),
        "  %first = shl i64 %i, 2",
        *(line for k in range(4) for line in (
            f"  %place{k} = add i64 %first, {k}",
            f"  %at{k} = getelementptr i64, ptr %output, i64 %place{k}",
            f"  store i64 %w{k}.{_ROUNDS}, ptr %at{k}, align 4",
        )),
        "  %after = add i64 %i, 1",
        "  %more.left = icmp ult i64 %after, %count",
        "  br i1 %more.left, label %loop, label %done",
        "done:",
        "  ret void",
        "}",
    ])  # fmt: skip


def _round(turn: int) -> list[str]:
    """Return the lines of a round: of two words products, of two the products' high halves."""
    lines = []
    for k, factor in enumerate(_FACTORS):
        name = f"%p{k}.{turn}"
        lines += [
            f"  {name}.word = zext i64 %w{2 * k}.{turn} to i128",
            f"  {name}.all = mul i128 {name}.word, {factor}",
            f"  {name}.low = trunc i128 {name}.all to i64",
            f"  {name}.up = lshr i128 {name}.all, 64",
            f"  {name}.high = trunc i128 {name}.up to i64",
        ]
    for k in range(2):
        lines += [
            f"  %x{k}.{turn} = xor i64 %p{1 - k}.{turn}.high, %w{2 * k + 1}.{turn}",
            f"  %w{2 * k}.{turn + 1} = xor i64 %x{k}.{turn}, %key{2 * turn + k}",
            f"  %w{2 * k + 1}.{turn + 1} = add i64 %p{1 - k}.{turn}.low, 0",
        ]
    return lines
