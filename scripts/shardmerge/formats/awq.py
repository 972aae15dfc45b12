"""AWQ in its ``gemm`` layout, as AutoAWQ stores it: codes of 4 bits, transposed and interleaved.

A module has ``qweight`` (I32 [inputs, outputs / 8]), ``qzeros`` (I32 [groups, outputs / 8]) and
``scales`` ([groups, outputs]). From the lowest bits on, a word holds outputs 0, 2, 4, 6, 1, 3, 5, 7
of eight. ``weight[o, i] = (code[i, o] - zero[g, o]) * scales[g, o]`` with ``g = i // group_size``.

Lin et al. 2023, "AWQ", https://arxiv.org/abs/2306.00978; https://github.com/casper-hansen/AutoAWQ,
``utils/packing_utils.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.formats.interface import (
    Announcement,
    Blocks,
    Box,
    LogicalTensor,
    Table,
    misfit,
    short,
)
from shardmerge.formats.shaped import Packed

if TYPE_CHECKING:
    import numpy as np

#: Where in a word the eight outputs are, from the first on.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Awq(Packed):
    """Modules with a ``qweight``.

    Args:
        group_size: Inputs that share a scale, or -1 for all of them.
    """

    group_size: int = 128
    name = "awq"

    def one(self, table: Table, module: str) -> LogicalTensor:
        """As ``Shaped.one``."""
        name = module + "weight"
        codes, scales, zeros = self._packed(table, module, name)
        inputs, words = codes.shape
        group = self._group(inputs)
        groups = -(-inputs // group)
        if scales.shape != (groups, words * 8):
            raise misfit(name, scales, (groups, words * 8), f"{codes.tensor!r}")
        if zeros.shape != (groups, words):
            raise misfit(name, zeros, (groups, words), f"{codes.tensor!r}")
        parts = {"codes": codes, "scales": scales, "zeros": zeros}
        shape = (words * 8, inputs)
        return LogicalTensor(name, shape, self.name, parts, (("group", group),), step=8)

    def rows(self, logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
        """As ``Format.rows``: rows of the weight are columns of the stored tensors."""
        parts, last = logical.parts, first + count
        groups = (0, parts["scales"].shape[0])
        words = (first // 8, -(-last // 8))
        return {
            "codes": ((0, logical.columns), words),
            "scales": (groups, (first, last)),
            "zeros": (groups, words),
        }

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """As ``Format.decode``."""
        import numpy as np

        from shardmerge.formats.values import as_float32

        group = np.arange(logical.columns) // logical.parameter("group")
        scales = as_float32(blocks["scales"], logical.parts["scales"].dtype).T
        skipped = slice(first % 8, first % 8 + count)
        codes = _outputs(blocks["codes"])[:, skipped].T
        zeros = _outputs(blocks["zeros"])[:, skipped].T
        return (codes - zeros[:, group]).astype(np.float32) * scales[:, group]


def _outputs(words: np.ndarray) -> np.ndarray:
    """Return codes in the order of outputs [rows, 8 * words]."""
    from shardmerge.formats.values import unpacked

    codes = unpacked(words, 4).reshape(len(words), -1, 8)
    return codes[:, :, list(_PLACES)].reshape(len(words), -1)


def announced(said: Announcement) -> Awq | None:
    """Return the format if a config says ``awq``.

    Raises:
        UserError: If its settings are nonsense or name a layout that is not read.
    """
    if said.method != "awq":
        return None
    form = said.text("version") or said.text("format") or "gemm"
    if form != "gemm" or said.integer("bits", said.integer("w_bit", 4)) != 4:
        raise UserError(
            f"is AWQ of version {short(form)}; only `gemm` of 4 bits is read", said.where
        )
    return Awq(said.integer("group_size", said.integer("q_group_size", 128, -1), -1))
