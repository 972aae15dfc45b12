"""FP8 with one scale for a tensor, a row, or a group of columns.

A module has ``weight`` (F8_E4M3) and ``weight_scale``; ``weight = codes * weight_scale``. So write

- compressed-tensors, format ``float-quantized`` (scale [1], [rows, 1], or one for a block) and
  ``mxfp8-quantized`` (U8 exponents, one for 32 columns),
- ModelOpt, ``quant_algo: FP8`` (a single number; ``input_scale`` is of use to activations only),
- vLLM's AutoFP8, ``quant_method: fp8`` (a single number),
- fbgemm, ``quant_method: fbgemm_fp8`` ([rows, 1]; fused experts of Llama 4 [experts, 1, columns]).

https://github.com/neuralmagic/compressed-tensors, ``compressors/naive_quantized`` and
``quantization/lifecycle/forward.py``; https://github.com/NVIDIA/TensorRT-Model-Optimizer,
``export``; OCP Microscaling Formats (MX) Specification v1.0 for mxfp8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shardmerge.formats.interface import FLOATS, FP8, Announcement, LogicalTensor, Table, part
from shardmerge.formats.scaled import CHANNEL, COLUMN, TENSOR, BlockShape, Scaled, block_of
from shardmerge.formats.schemes import weight_schemes

SUFFIX = "_scale"
_PLAIN = (TENSOR, CHANNEL, COLUMN)
_MX_GROUP = (1, 32)


@dataclass(frozen=True)
class Fp8(Scaled):
    """Tensors of F8 with a ``_scale``.

    Args:
        blocks: Heights and widths of blocks that a config names besides tensor and row.
    """

    blocks: tuple[BlockShape, ...] = ()
    name = "fp8"
    endings = ("", SUFFIX)

    def stems(self, table: Table) -> Iterable[str]:
        """As ``Shaped.stems``."""
        return [n for n in table if n + SUFFIX in table and table[n].dtype in FP8]

    def one(self, table: Table, name: str) -> LogicalTensor:
        """As ``Shaped.one``."""
        codes = part(table, name, name, FP8, (1, 2, 3, 4))
        kinds = (*FLOATS, "F8_E8M0", "U8")
        scales = part(table, name + SUFFIX, name, kinds, (0, 1, 2, 3, 4))
        exponents = scales.dtype not in FLOATS
        allowed = (_MX_GROUP, *self.blocks) if exponents else (*_PLAIN, *self.blocks)
        block = block_of(name, codes, scales, allowed)
        parts = {"codes": codes, "scales": scales}
        step = block[0] or 1
        return LogicalTensor(name, codes.shape, self.name, parts, (("block", block),), step=step)


def announced(said: Announcement) -> Fp8 | None:
    """Return the format if a config says that weights are FP8.

    Raises:
        UserError: If its settings are nonsense.
    """
    if said.method in ("fp8", "fbgemm_fp8", "modelopt"):
        return Fp8()
    if said.method != "compressed-tensors":
        return None
    schemes = [s for s in weight_schemes(said) if s.kind == "float" and s.bits == 8]
    blocks = dict.fromkeys(s.block for s in schemes if s.block not in _PLAIN)
    return Fp8(tuple(blocks))
