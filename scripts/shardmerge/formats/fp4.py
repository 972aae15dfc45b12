"""NVFP4 and MXFP4 of single matrices: codes of 4-bit floats (E2M1), a scale for 16 or 32 columns.

Two codes are in a byte, the lower half first. Stored are, of NVFP4,

- by compressed-tensors (``nvfp4-pack-quantized``) ``weight_packed`` (U8 [rows, columns / 2]),
  ``weight_scale`` (F8_E4M3 [rows, columns / 16]) and ``weight_global_scale`` (F32 [1]):
  ``weight = code * (scale / global_scale)``;
- by ModelOpt (``quant_algo: NVFP4``) ``weight`` (U8), ``weight_scale`` and ``weight_scale_2``
  (F32, one number): ``weight = code * (scale * scale_2)``;

of MXFP4, by compressed-tensors (``mxfp4-pack-quantized``), ``weight_packed`` and ``weight_scale``
(U8 or F8_E8M0 [rows, columns / 32]): ``weight = code * 2 ** (scale - 127)``.

NVIDIA 2025, "Introducing NVFP4", https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference/;
OCP Microscaling Formats (MX) Specification v1.0; https://github.com/neuralmagic/compressed-tensors,
``compressors/nvfp4`` and ``compressors/mxfp4``;
https://github.com/NVIDIA/TensorRT-Model-Optimizer, ``nvfp4_tensor.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.formats.boxes import at, matrix_rows, whole
from shardmerge.formats.interface import (
    Announcement,
    Blocks,
    Box,
    LogicalTensor,
    PartRef,
    Table,
    filled,
    misfit,
    part,
)
from shardmerge.formats.shaped import Shaped, before

if TYPE_CHECKING:
    import numpy as np

_EXPONENTS = ("U8", "F8_E8M0")


@dataclass(frozen=True)
class Fp4(Shaped):
    """Tensors of two codes in a byte, with a ``_scale`` for a group of columns."""

    name = "fp4"

    def stems(self, table: Table) -> Iterable[str]:
        """As ``Shaped.stems``; one that is stored both ways is there twice, and refused."""
        plain = [n for n in before(table, "_scale_2") if _is_codes(table, n)]
        return [*(n for n in before(table, "_packed") if _is_codes(table, n + "_packed")), *plain]

    def one(self, table: Table, name: str) -> LogicalTensor:
        """As ``Shaped.one``."""
        packed = _is_codes(table, name + "_packed")
        stored, overall = (name + "_packed", "_global_scale") if packed else (name, "_scale_2")
        codes = part(table, stored, name, ("U8",), (2, 3))
        scales = part(table, name + "_scale", name, ("F8_E4M3", *_EXPONENTS), (2, 3))
        filled(name, codes, scales)
        group = 32 if scales.dtype in _EXPONENTS else 16
        shape = (*codes.shape[:-1], codes.shape[-1] * 2)
        expected = (*codes.shape[:-1], -(-shape[-1] // group))
        if scales.shape != expected:
            raise misfit(name, scales, expected, f"{stored!r} and a group of {group}")
        parts = {"codes": codes, "scales": scales}
        if group == 16:
            parts["overall"] = _overall(table, name, overall, codes)
        settings = (("divide", packed), ("group", group))
        return LogicalTensor(name, shape, self.name, parts, settings)

    def rows(self, logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
        """As ``Format.rows``."""
        lead, begin, end = matrix_rows(logical, first, count)
        parts, rows = logical.parts, (*at(lead), (begin, end))
        boxes = {role: (*rows, (0, parts[role].shape[-1])) for role in ("codes", "scales")}
        if "overall" in parts:
            each = parts["overall"].shape not in ((), (1,))
            boxes["overall"] = at(lead) if each else whole(parts["overall"])
        return boxes

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """As ``Format.decode``."""
        import numpy as np

        from shardmerge.formats.values import E2M1, as_float32, nibbles

        group, code = logical.parameter("group"), logical.parts["scales"].dtype
        codes = nibbles(blocks["codes"].reshape(count, -1))
        scales = as_float32(blocks["scales"], "F8_E8M0" if code == "U8" else code)
        scales = scales.reshape(count, -1)
        if "overall" in blocks:
            overall = blocks["overall"].reshape(-1)[0]
            scales = scales / overall if logical.parameter("divide") else scales * overall
        return E2M1[codes] * scales[:, np.arange(logical.columns) // group]


def _is_codes(table: Table, name: str) -> bool:
    return name in table and table[name].dtype == "U8"


def _overall(table: Table, name: str, suffix: str, codes: PartRef) -> PartRef:
    """Return the scale of the whole tensor, or of every expert."""
    overall = part(table, name + suffix, name, ("F32",), (0, 1))
    if overall.shape not in ((), (1,), codes.shape[:-2]):
        raise misfit(name, overall, (1,), f"{codes.tensor!r}")
    return overall


def announced(said: Announcement) -> Fp4 | None:
    """Return the format if a config says that it is of compressed-tensors or ModelOpt."""
    return Fp4() if said.method in ("compressed-tensors", "modelopt") else None
