"""FP8 with a scale for every block, as DeepSeek-V3 and Qwen3 are published.

A module has ``weight`` (F8_E4M3) and ``weight_scale_inv`` (F32, one number for 128 x 128 elements;
the blocks at the edges may be smaller). ``weight = codes * weight_scale_inv``. Scales may also be
exponents (F8_E8M0), and a config without ``weight_block_size`` has one scale for a tensor.

DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 3.3,
https://arxiv.org/abs/2412.19437; ``inference/kernel.py`` (``weight_dequant``) of
https://github.com/deepseek-ai/DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shardmerge.base.errors import UserError
from shardmerge.formats.interface import (
    FLOATS,
    FP8,
    Announcement,
    LogicalTensor,
    Table,
    part,
    short,
)
from shardmerge.formats.scaled import TENSOR, BlockShape, Scaled, block_of

SUFFIX = "_scale_inv"


@dataclass(frozen=True)
class Fp8Block(Scaled):
    """Tensors with a ``_scale_inv``.

    Args:
        block: Height and width that a scale is for.
    """

    block: BlockShape = (128, 128)
    name = "fp8-block"
    endings = ("", SUFFIX)

    def stems(self, table: Table) -> Iterable[str]:
        """As ``Shaped.stems``."""
        return [n for n in table if n + SUFFIX in table and table[n].dtype in FP8]

    def one(self, table: Table, name: str) -> LogicalTensor:
        """As ``Shaped.one``."""
        codes = part(table, name, name, FP8, (1, 2, 3, 4))
        scales = part(table, name + SUFFIX, name, (*FLOATS, "F8_E8M0", "U8"), (0, 1, 2, 3, 4))
        block = block_of(name, codes, scales, (self.block,))
        parts = {"codes": codes, "scales": scales}
        step = block[0] or 1
        return LogicalTensor(name, codes.shape, self.name, parts, (("block", block),), step=step)


def announced(said: Announcement) -> Fp8Block | None:
    """Return the format if a config says ``fp8``.

    Raises:
        UserError: If its block size is nonsense.
    """
    if said.method != "fp8":
        return None
    block = said.settings.get("weight_block_size")
    if block is None:
        return Fp8Block(TENSOR)
    numbers = block if isinstance(block, list | tuple) else ()
    if len(numbers) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in numbers):
        raise UserError(f"has weight_block_size = {short(block)}, not two numbers", said.where)
    return Fp8Block((numbers[0], numbers[1]))
