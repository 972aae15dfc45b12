"""Stored small numbers as float32: tables of all values of an 8-bit or 4-bit type.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning", https://arxiv.org/abs/2209.05433;
OCP Microscaling Formats (MX) Specification v1.0, sections 5.3 and 5.4 (E2M1, E8M0);
Dettmers et al. 2023, "QLoRA", https://arxiv.org/abs/2305.14314, appendix E (NF4).
"""

from __future__ import annotations

import numpy as np

_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
}


def stored_type(code: str) -> np.dtype:
    """Return numpy's type for stored elements; one that numpy lacks is read as its bits."""
    return np.dtype(_TYPES.get(code, "u1"))


def _small_float(exponent_bits: int, mantissa_bits: int, bias: int) -> np.ndarray:
    """Return all values of a float type of 8 or fewer bits, without infinities or NaN."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    implicit = np.where(exponent > 0, 1 << mantissa_bits, 0)
    power = np.maximum(exponent, 1) - bias - mantissa_bits
    sign = np.where(codes >> (exponent_bits + mantissa_bits), -1.0, 1.0)
    return (sign * np.ldexp((implicit + mantissa).astype(np.float64), power)).astype(np.float32)


def _e4m3() -> np.ndarray:
    table = _small_float(4, 3, 7)
    table[[0x7F, 0xFF]] = np.nan
    return table


def _e5m2() -> np.ndarray:
    table = _small_float(5, 2, 15)
    table[[0x7C, 0xFC]] = np.inf, -np.inf
    table[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return table


def _e8m0() -> np.ndarray:
    return np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32)


E2M1 = _small_float(2, 1, 1)
NF4 = np.float32(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
#: The 4-bit float of bitsandbytes, which is not E2M1.
_FP4 = np.float32([0, 0.0625, 8, 12, 4, 6, 2, 3]) / np.float32(12)
BITSANDBYTES = {"nf4": NF4, "fp4": np.concatenate([_FP4, -_FP4])}
CODE_TABLES = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2(), "F8_E8M0": _e8m0()}


def as_float32(stored: np.ndarray, code: str) -> np.ndarray:
    """Return stored elements as float32, which holds all values of these types.

    Args:
        stored: As ``stored_type`` says, any shape.
        code: F32, F16, BF16, an 8-bit float type, I8 or U8.
    """
    if code in CODE_TABLES:
        return CODE_TABLES[code][stored]
    if code == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def nibbles(stored: np.ndarray, high_first: bool = False) -> np.ndarray:
    """Return the 4-bit codes in bytes; the last dimension is twice as long.

    Args:
        stored: uint8.
        high_first: Whether a byte's upper half is the first of the two.
    """
    halves = (stored >> 4, stored & 15) if high_first else (stored & 15, stored >> 4)
    return np.stack(halves, axis=-1).reshape(*stored.shape[:-1], 2 * stored.shape[-1])


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes in 32-bit words, a stream of bits from the lowest on.

    A code may begin in one word and end in the next.

    Args:
        words: int32 [rows, n], where n words hold whole codes.
        bits: 1 to 8.

    Returns:
        int16 [rows, n * 32 // bits], not negative.
    """
    rows, count = words.shape
    total = count * 32 // bits
    start = np.arange(total) * bits
    word, shift = start >> 5, (start & 31).astype(np.uint64)
    plain = words.astype(np.int64).astype(np.uint64) & np.uint64(0xFFFFFFFF)
    low = plain[:, word] >> shift
    if 32 % bits:
        padded = np.concatenate([plain, np.zeros((rows, 1), np.uint64)], axis=1)
        low |= padded[:, word + 1] << (np.uint64(32) - shift)
    return (low & np.uint64((1 << bits) - 1)).astype(np.int16)
