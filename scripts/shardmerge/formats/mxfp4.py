"""MXFP4 as gpt-oss stores its experts: fused, and transposed against the model's parameters.

``NAME_blocks`` (U8 [experts, outputs, groups, 16], two E2M1 codes in a byte, the lower half first)
and ``NAME_scales`` (U8 [experts, outputs, groups], E8M0) make ``NAME`` [experts, groups * 32,
outputs]: ``weight[e, i, o] = code[e, o, i] * 2 ** (scale[e, o, i // 32] - 127)``.

OCP Microscaling Formats (MX) Specification v1.0, sections 5.3.3 and 5.4.1; OpenAI 2025, "gpt-oss
model card", https://arxiv.org/abs/2508.10925; https://github.com/openai/gpt-oss,
``gpt_oss/torch/weights.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.formats.boxes import at, matrix_rows
from shardmerge.formats.interface import (
    Announcement,
    Blocks,
    Box,
    LogicalTensor,
    Table,
    filled,
    misfit,
    part,
)
from shardmerge.formats.shaped import Shaped, before

if TYPE_CHECKING:
    import numpy as np

_GROUP = 32


@dataclass(frozen=True)
class Mxfp4(Shaped):
    """Tensors with ``_blocks`` and ``_scales``."""

    name = "mxfp4"

    def stems(self, table: Table) -> Iterable[str]:
        """As ``Shaped.stems``."""
        return [n for n in before(table, "_blocks") if table[n + "_blocks"].dtype == "U8"]

    def one(self, table: Table, name: str) -> LogicalTensor:
        """As ``Shaped.one``."""
        codes = part(table, name + "_blocks", name, ("U8",), (4,))
        scales = part(table, name + "_scales", name, ("U8", "F8_E8M0"), (3,))
        filled(name, codes, scales)
        experts, outputs, groups, size = codes.shape
        if size != _GROUP // 2:
            raise misfit(name, codes, (*codes.shape[:3], _GROUP // 2), "a group of 32")
        if scales.shape != codes.shape[:3]:
            raise misfit(name, scales, codes.shape[:3], f"{codes.tensor!r}")
        shape = (experts, groups * _GROUP, outputs)
        parts = {"codes": codes, "scales": scales}
        return LogicalTensor(name, shape, self.name, parts, step=_GROUP)

    def rows(self, logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
        """As ``Format.rows``: rows of the weight lie across the stored groups."""
        lead, begin, end = matrix_rows(logical, first, count)
        groups = (begin // _GROUP, -(-end // _GROUP))
        scales = (*at(lead), (0, logical.columns), groups)
        return {"codes": (*scales, (0, _GROUP // 2)), "scales": scales}

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """As ``Format.decode``."""
        from shardmerge.formats.values import CODE_TABLES, E2M1, nibbles

        _, begin, _ = matrix_rows(logical, first, count)
        scales = CODE_TABLES["F8_E8M0"][blocks["scales"][0]][..., None]
        values = E2M1[nibbles(blocks["codes"][0])] * scales
        skipped = begin % _GROUP
        return values.reshape(logical.columns, -1)[:, skipped : skipped + count].T.copy()


def announced(said: Announcement) -> Mxfp4 | None:
    """Return the format if a config says ``mxfp4``."""
    return Mxfp4() if said.method == "mxfp4" else None
