"""compressed-tensors with whole numbers: packed codes of 2, 4 or 8 bits, and plain int8.

``pack-quantized``: ``weight_packed`` (I32 [rows, columns * bits / 32]), ``weight_scale``
([rows, groups], [rows, 1] or [1]), ``weight_zero_point`` unless symmetric (I32, packed down the
rows, or I8 [rows, groups] of early versions), ``weight_g_idx`` (I32 [columns], the group of every
column) with activation order, ``weight_shape`` (I64 [2]). ``weight = (code - zero) * scale``, codes
and zeros counted from ``-2 ** (bits - 1)``.

``int-quantized``: ``weight`` (I8), ``weight_scale``, ``weight_zero_point``; the same formula.

https://github.com/neuralmagic/compressed-tensors, ``compressors/pack_quantized``,
``compressors/naive_quantized`` and ``quantization/lifecycle/forward.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.formats.boxes import whole
from shardmerge.formats.groups import group_numbers
from shardmerge.formats.interface import (
    FLOATS,
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
from shardmerge.formats.scaled import CHANNEL, TENSOR, BlockShape, Scaled, block_of
from shardmerge.formats.schemes import Scheme, weight_schemes

if TYPE_CHECKING:
    import numpy as np

_BITS = (2, 4, 8)


@dataclass(frozen=True)
class PackQuantized:
    """Tensors with a ``_packed`` of 32-bit words.

    Args:
        schemes: What the config says of weights of whole numbers.
    """

    schemes: tuple[Scheme, ...] = ()
    name = "pack-quantized"
    flat = False

    def logical(self, table: Table, contents: Mapping[str, bytes]) -> list[LogicalTensor]:
        """As ``Format.logical``."""
        names = [n.removesuffix("_packed") for n in _packed(table)]
        return [self._one(table, name, contents) for name in sorted(names)]

    def needed(self, table: Table) -> list[str]:
        """Return the ``weight_shape`` of tensors whose bits the other shapes leave open.

        Of all others, ``decode`` compares it.
        """
        bases = (n.removesuffix("_packed") for n in _packed(table))
        shaped = [n for n in bases if n + "_shape" in table and n + "_scale" in table]
        return sorted(n + "_shape" for n in shaped if len(self._fitting(*_grid(table, n))) > 1)

    def _one(self, table: Table, name: str, contents: Mapping[str, bytes]) -> LogicalTensor:
        codes, scales = _grid(table, name)
        filled(name, codes, scales)
        parts = {"codes": codes, "scales": scales}
        scheme = self._scheme(name, codes, scales, contents)
        columns = codes.shape[1] * 32 // scheme.bits
        if not scheme.symmetric or name + "_zero_point" in table:
            parts["zeros"] = self._zeros(table, name, codes, scales, scheme)
        if name + "_g_idx" in table:
            parts["groups"] = part(table, name + "_g_idx", name, ("I32", "I64"), (1,))
            if parts["groups"].shape != (columns,):
                raise misfit(name, parts["groups"], (columns,), "every column")
        if name + "_shape" in table:
            parts["shape"] = part(table, name + "_shape", name, ("I64", "I32"), (1,))
            if parts["shape"].shape != (2,):
                raise misfit(name, parts["shape"], (2,), "a matrix")
        settings = (("bits", scheme.bits), ("block", scheme.block))
        shape = (codes.shape[0], columns)
        return LogicalTensor(name, shape, self.name, parts, settings, step=32)

    def _fitting(self, codes: PartRef, scales: PartRef) -> list[Scheme]:
        """Return the schemes that the shapes fit, one of every width."""
        fitting = [s for s in self.schemes if _fits(s, codes, scales)]
        return list({(s.bits, s.block): s for s in fitting}.values())

    def _scheme(
        self, name: str, codes: PartRef, scales: PartRef, contents: Mapping[str, bytes]
    ) -> Scheme:
        """Return the only scheme that the shapes fit, and a stored shape where it was read."""
        fitting = self._fitting(codes, scales)
        if len(fitting) > 1:
            columns = int.from_bytes(contents.get(name + "_shape", b"")[-8:], "little")
            fitting = [s for s in fitting if codes.shape[1] * 32 // s.bits == columns]
        if len(fitting) != 1:
            raise UserError(
                f"has packed weights that fit {len(fitting) or 'none'} of the groups of the config "
                "(`config_groups`)",
                f"tensor {name!r}",
            )
        if fitting[0].bits not in _BITS:
            raise UserError(
                f"has codes of {fitting[0].bits} bits; only 2, 4 and 8 are read", f"tensor {name!r}"
            )
        return fitting[0]

    def _zeros(
        self, table: Table, name: str, codes: PartRef, scales: PartRef, scheme: Scheme
    ) -> PartRef:
        zeros = part(table, name + "_zero_point", name, ("I32", "I8"), (2,))
        if len(scales.shape) != 2:
            raise misfit(name, scales, (codes.shape[0], 1), f"{zeros.tensor!r}")
        down = codes.shape[0] if zeros.dtype == "I8" else -(-codes.shape[0] * scheme.bits // 32)
        expected = (down, scales.shape[1])
        if zeros.shape != expected:
            raise misfit(name, zeros, expected, f"{codes.tensor!r}")
        return zeros

    def rows(self, logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
        """As ``Format.rows``."""
        parts, last, bits = logical.parts, first + count, logical.parameter("bits")
        single = logical.parameter("block") == TENSOR
        boxes = {role: whole(parts[role]) for role in ("groups", "shape") if role in parts}
        boxes["codes"] = (first, last), (0, parts["codes"].shape[1])
        scales = whole(parts["scales"])
        boxes["scales"] = scales if single else ((first, last), *scales[1:])
        if "zeros" in parts:
            down, across = parts["zeros"].shape
            packed = first // 32 * bits, min(down, -(-last // 32) * bits)
            plain = parts["zeros"].dtype == "I8"
            boxes["zeros"] = (first, last) if plain else packed, (0, across)
        return boxes

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """As ``Format.decode``."""
        import numpy as np

        from shardmerge.formats.values import as_float32, unpacked

        bits, (_, width) = logical.parameter("bits"), logical.parameter("block")
        if "shape" in blocks and tuple(blocks["shape"].tolist()) != logical.shape:
            raise UserError(
                f"says in {logical.parts['shape'].tensor!r} that it is "
                f"{blocks['shape'].tolist()}, but its codes make {list(logical.shape)}",
                f"tensor {logical.name!r}",
                "Rows that do not fill 32-bit words are not read.",
            )
        scales = as_float32(blocks["scales"], logical.parts["scales"].dtype)
        scales = scales.reshape(-1, scales.shape[1] if scales.ndim == 2 else 1)
        zeros = _zeros(logical, blocks, first, count)
        group = np.zeros(logical.columns, int)
        if scales.shape[1] > 1:
            group = np.arange(logical.columns) // width
            if "groups" in blocks and not (blocks["groups"] == -1).any():
                group = group_numbers(logical, blocks["groups"], scales.shape[1])
        codes = unpacked(blocks["codes"], bits)
        centred = codes - (zeros[:, group] if zeros.shape[1] > 1 else zeros)
        return centred.astype(np.float32) * scales[:, group]


def _zeros(logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
    """Return zeros counted as codes are, from 0 on, int16 [count, groups or 1]."""
    import numpy as np

    from shardmerge.formats.values import unpacked

    bits = logical.parameter("bits")
    middle = 1 << (bits - 1)
    if "zeros" not in blocks:
        return np.full((count, 1), middle, np.int16)
    if logical.parts["zeros"].dtype == "I8":
        return blocks["zeros"].astype(np.int16) + middle
    return unpacked(blocks["zeros"].T, bits).T[first % 32 : first % 32 + count]


def _packed(table: Table) -> list[str]:
    return [n for n in table if n.endswith("_packed") and table[n].dtype == "I32"]


def _grid(table: Table, name: str) -> tuple[PartRef, PartRef]:
    """Return codes and scales of a tensor."""
    codes = part(table, name + "_packed", name, ("I32",), (2,))
    return codes, part(table, name + "_scale", name, FLOATS, (0, 1, 2))


def _fits(scheme: Scheme, codes: PartRef, scales: PartRef) -> bool:
    rows, columns = codes.shape[0], codes.shape[1] * 32 // scheme.bits
    if scheme.block == TENSOR:
        return scales.shape in ((), (1,), (1, 1))
    if scheme.block == CHANNEL:
        return scales.shape in ((rows,), (rows, 1))
    return columns % scheme.block[1] == 0 and scales.shape == (rows, columns // scheme.block[1])


@dataclass(frozen=True)
class IntQuantized(Scaled):
    """Tensors of I8 with a ``_scale``.

    Args:
        blocks: Heights and widths of blocks that the config names.
    """

    blocks: tuple[BlockShape, ...] = ()
    name = "int-quantized"

    def stems(self, table: Table) -> Iterable[str]:
        """As ``Shaped.stems``."""
        return [n for n in table if n + "_scale" in table and table[n].dtype == "I8"]

    def one(self, table: Table, name: str) -> LogicalTensor:
        """As ``Shaped.one``."""
        codes = part(table, name, name, ("I8",), (1, 2, 3))
        parts = {"codes": codes, "scales": part(table, name + "_scale", name, FLOATS, (0, 1, 2, 3))}
        block = block_of(name, codes, parts["scales"], self.blocks or (TENSOR, CHANNEL))
        if name + "_zero_point" in table:
            parts["zeros"] = part(table, name + "_zero_point", name, ("I8",), (0, 1, 2, 3))
            if parts["zeros"].shape != parts["scales"].shape:
                shape = parts["scales"].shape
                raise misfit(name, parts["zeros"], shape, f"{parts['scales'].tensor!r}")
        return LogicalTensor(name, codes.shape, self.name, parts, (("block", block),))


def announced(said: Announcement) -> tuple[PackQuantized, IntQuantized] | None:
    """Return the formats if a config says ``compressed-tensors``.

    Raises:
        UserError: If its settings are nonsense.
    """
    if said.method != "compressed-tensors":
        return None
    schemes = tuple(s for s in weight_schemes(said) if s.kind == "int")
    blocks = dict.fromkeys([TENSOR, CHANNEL, *(s.block for s in schemes)])
    return PackQuantized(schemes), IntQuantized(tuple(blocks))
