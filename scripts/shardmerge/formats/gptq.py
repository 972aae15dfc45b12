"""GPTQ, as AutoGPTQ and GPTQModel store it: codes of 2, 3, 4 or 8 bits, transposed.

A module has ``qweight`` (I32 [inputs * bits / 32, outputs], codes packed down the inputs),
``qzeros`` (I32 [groups, outputs * bits / 32]), ``scales`` ([groups, outputs]) and ``g_idx``
(I32 [inputs], the group of every input; with ``desc_act`` it is a permutation).
``weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o])`` with ``g = g_idx[i]``. Files of
``checkpoint_format: gptq`` hold zero - 1, modulo 2 ** bits; ``gptq_v2`` the zero itself.

Frantar et al. 2022, "GPTQ", https://arxiv.org/abs/2210.17323;
https://github.com/ModelCloud/GPTQModel, ``nn_modules/qlinear`` (``dequantize_weight``) and
``utils/model_dequant.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.formats.boxes import whole
from shardmerge.formats.groups import group_numbers
from shardmerge.formats.interface import (
    Announcement,
    Blocks,
    Box,
    LogicalTensor,
    PartRef,
    Table,
    misfit,
    part,
    short,
)
from shardmerge.formats.shaped import Packed

if TYPE_CHECKING:
    import numpy as np

BITS = (2, 3, 4, 8)
_CONVENTIONS = {"": 1, "gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True)
class Gptq(Packed):
    """Modules with a ``qweight``.

    Args:
        bits: Of a code; a module's shapes may tell another (``dynamic``).
        group_size: Inputs that share a scale, or -1 for all of them.
        offset: What is added to a stored zero.
        varied: Whether modules may have other group sizes (``dynamic``).
    """

    bits: int = 4
    group_size: int = 128
    offset: int = 1
    varied: bool = False
    name = "gptq"

    def one(self, table: Table, module: str) -> LogicalTensor:
        """As ``Shaped.one``."""
        name = module + "weight"
        codes, scales, zeros = self._packed(table, module, name)
        groups, outputs = scales.shape
        if codes.shape[1] != outputs:
            raise misfit(name, codes, (codes.shape[0], outputs), f"{scales.tensor!r}")
        parts = {"codes": codes, "scales": scales, "zeros": zeros}
        bits = self._bits(name, codes, zeros, groups, outputs)
        inputs = codes.shape[0] * 32 // bits
        if module + "g_idx" in table:
            parts["groups"] = part(table, module + "g_idx", name, ("I32", "I64"), (1,))
            inputs = self._inputs(name, parts["groups"], codes, bits)
        usual = -(-inputs // self._group(inputs))
        if groups != usual and not (self.varied and "groups" in parts):
            raise misfit(name, scales, (usual, outputs), f"{codes.tensor!r}")
        settings = (("bits", bits), ("group", self._group(inputs)), ("offset", self.offset))
        return LogicalTensor(name, (outputs, inputs), self.name, parts, settings, step=32)

    def _bits(self, name: str, codes: PartRef, zeros: PartRef, groups: int, outputs: int) -> int:
        """Return the bits of a code: the config's, or others that the shapes ask for."""
        for bits in dict.fromkeys((self.bits, *BITS)):
            words = -(-outputs * bits // 32)
            if zeros.shape == (groups, words) and codes.shape[0] * 32 % bits == 0:
                return bits
        raise misfit(name, zeros, (groups, -(-outputs * self.bits // 32)), f"{codes.tensor!r}")

    def _inputs(self, name: str, groups: PartRef, codes: PartRef, bits: int) -> int:
        inputs = groups.shape[0]
        if not inputs or -(-inputs * bits // 32) > codes.shape[0]:
            raise misfit(name, groups, (codes.shape[0] * 32 // bits,), f"{codes.tensor!r}")
        if -(-inputs // 32) * bits < codes.shape[0]:
            raise misfit(name, groups, (codes.shape[0] * 32 // bits,), f"{codes.tensor!r}")
        return inputs

    def rows(self, logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
        """As ``Format.rows``: rows of the weight are columns of the stored tensors."""
        parts, last, bits = logical.parts, first + count, logical.parameter("bits")
        groups, words = parts["zeros"].shape
        boxes: dict[str, Box] = {
            "codes": ((0, parts["codes"].shape[0]), (first, last)),
            "scales": ((0, groups), (first, last)),
            "zeros": ((0, groups), (first // 32 * bits, min(words, -(-last // 32) * bits))),
        }
        return boxes | ({"groups": whole(parts["groups"])} if "groups" in parts else {})

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """As ``Format.decode``."""
        import numpy as np

        from shardmerge.formats.values import as_float32, unpacked

        bits, inputs = logical.parameter("bits"), logical.columns
        scales = as_float32(blocks["scales"], logical.parts["scales"].dtype).T
        zeros = unpacked(blocks["zeros"], bits)[:, first % 32 : first % 32 + count]
        zeros = (zeros + logical.parameter("offset")) & ((1 << bits) - 1)
        group = np.arange(inputs) // logical.parameter("group")
        if "groups" in blocks:
            group = group_numbers(logical, blocks["groups"], scales.shape[1])
        codes = unpacked(blocks["codes"].T, bits)[:, :inputs]
        return scales[:, group] * (codes - zeros.T[:, group]).astype(np.float32)


def announced(said: Announcement) -> Gptq | None:
    """Return the format if a config says ``gptq``.

    Raises:
        UserError: If its settings are nonsense or name a layout that is not read.
    """
    if said.method != "gptq":
        return None
    form = said.text("checkpoint_format")
    if form not in _CONVENTIONS:
        raise UserError(
            f"has checkpoint_format {short(form)}, a layout for one kernel that cannot be read",
            said.where,
            "Layouts that are read: gptq, gptq_v2.",
        )
    bits = said.integer("bits", 4)
    if bits not in BITS:
        raise UserError(f"has {bits} bits; GPTQ of 2, 3, 4 and 8 is read", said.where)
    group = said.integer("group_size", 128, -1)
    return Gptq(bits, group, _CONVENTIONS[form], bool(said.settings.get("dynamic")))
