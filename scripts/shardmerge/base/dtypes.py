"""The one map of data types: safetensors code, recipe name, size in bytes, kind."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from shardmerge.base.errors import UserError, did_you_mean


@dataclass(frozen=True)
class DType:
    """A tensor element type.

    Args:
        code: Name in a safetensors header, such as ``F16``.
        name: Name in torch (where it has the type) and in recipes, such as ``float16``.
        bits: Bits of one element.
        floating: Whether it can be merged (the others are only copied).
        combine: Code of the type that sums of it are computed in.
    """

    code: str
    name: str
    bits: int
    floating: bool = False
    combine: str | None = None

    @property
    def size(self) -> int:
        """Bytes of one element.

        Raises:
            UserError: If an element is smaller than a byte.
        """
        if self.bits % 8:
            raise UserError(f"{self.name} values of {self.bits} bits cannot be copied or merged")
        return self.bits // 8


DTYPES = {
    d.code: d
    for d in (
        DType("F64", "float64", 64, True, "F64"),
        DType("F32", "float32", 32, True, "F32"),
        DType("F16", "float16", 16, True, "F32"),
        DType("BF16", "bfloat16", 16, True, "F32"),
        DType("F8_E4M3", "float8_e4m3fn", 8),
        DType("F8_E5M2", "float8_e5m2", 8),
        DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 8),
        DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 8),
        DType("F8_E8M0", "float8_e8m0fnu", 8),
        DType("F6_E2M3", "float6_e2m3fn", 6),
        DType("F6_E3M2", "float6_e3m2fn", 6),
        DType("F4", "float4_e2m1fn_x2", 4),
        DType("C64", "complex64", 64),
        DType("I64", "int64", 64),
        DType("I32", "int32", 32),
        DType("I16", "int16", 16),
        DType("I8", "int8", 8),
        DType("U64", "uint64", 64),
        DType("U32", "uint32", 32),
        DType("U16", "uint16", 16),
        DType("U8", "uint8", 8),
        DType("BOOL", "bool", 8),
    )
}
#: What people and other programs call the types, by the names that recipes have.
_SHORT = {code.lower(): dtype.name for code, dtype in DTYPES.items()} | {
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "bfloat": "bfloat16",
    "fp32": "float32",
    "float": "float32",
    "single": "float32",
    "fp64": "float64",
    "double": "float64",
}
_WIDTH = re.compile(r"\d+")
MERGEABLE = {d.name: d.code for d in DTYPES.values() if d.floating}
MERGEABLE_CODES = frozenset(MERGEABLE.values())


def tensor_bytes(code: str, shape: Iterable[int]) -> int:
    """Return the bytes that a tensor of that type and shape takes in its file, rounded up."""
    return -(-math.prod(shape) * DTYPES[code].bits // 8)


@cache
def bytes_of(code: str, shape: tuple[int, ...]) -> int:
    """Return ``tensor_bytes``, kept: few types and shapes are those of thousands of tensors."""
    return tensor_bytes(code, shape)


def single(value: float) -> float:
    """Return a number rounded to float32.

    Raises:
        OverflowError: If it is finite and beyond float32's largest number.
    """
    return struct.unpack("<f", struct.pack("<f", value))[0]


def promoted(codes: Iterable[str]) -> str:
    """Return the code of the type that holds the values of all of these floating types."""
    distinct = dict.fromkeys(codes)
    if len(distinct) == 1:
        return next(iter(distinct))
    return "F64" if "F64" in distinct else "F32"


def dtype_code(name: str, where: str | None = None) -> str:
    """Return the safetensors code of a dtype as recipes write it (``float16``, ``torch.float16``).

    Raises:
        UserError: If models cannot be merged in that type.
    """
    plain = str(name).removeprefix("torch.")
    if plain not in MERGEABLE:
        raise UserError(
            f"dtype {name!r} is not one that models are merged in",
            where,
            suggest(plain, MERGEABLE),
        )
    return MERGEABLE[plain]


def suggest(word: str, known: Iterable[str]) -> str | None:
    """Return a sentence that suggests a known word; as ``did_you_mean``, and knows short names.

    A type of another width is never suggested: who writes ``float8`` does not mean ``float16``.
    """
    known = set(known)
    short = str(word).lower().removeprefix("torch.")
    if _SHORT.get(short) in known:
        return f"Did you mean {_SHORT[short]!r}?"
    if known & set(MERGEABLE):
        width = _WIDTH.findall(short)[:1]
        alike = [name for name in known if not width or _WIDTH.findall(name)[:1] == width]
        near = did_you_mean(short, alike)
        return near if near and near.startswith("Did") else did_you_mean("", known)
    return did_you_mean(word, known)


def combine_dtype(codes: list[str] | tuple[str, ...]) -> str:
    """Return the code of the type in which values of these types are combined."""
    return "F64" if "F64" in codes else "F32"
