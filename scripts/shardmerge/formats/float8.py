"""Floats of 8 bits that are values themselves, as checkpoints of diffusion models have them.

There are no scales: a stored number is the number. Only checkpoints of any kind are read so. In
a language model, floats of 8 bits without scales are codes whose scales are missing.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning", https://arxiv.org/abs/2209.05433.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.formats.interface import FP8, Blocks, LogicalTensor, PartRef, Table
from shardmerge.formats.scaled import Scaled

if TYPE_CHECKING:
    import numpy as np

#: What a tensor is called whose presence makes all 8-bit floats of its module codes.
_OF_MODULE = re.compile(r"_?scales?(_inv)?|comfy_quant", re.IGNORECASE)
#: What stands in the name of a scale beside the name of the tensor that it is of.
_OF_TENSOR = re.compile(r"_?scales?(_inv)?(_\d+)?_?", re.IGNORECASE)
#: Types that weights of few bits are packed into.
_PACKED = ("U8", "I8", "I32")
#: Says that all weights of a file have scales.
_OF_FILE = "scaled_fp8"


@dataclass(frozen=True)
class Float8(Scaled):
    """Tensors of F8_E4M3 or F8_E5M2 without scales."""

    name = "float8"
    flat = True

    def stems(self, table: Table) -> Iterable[str]:
        """As ``Shaped.stems``."""
        scaled, packed = _scaled(table), _packed(table)
        for name, entry in table.items():
            module, last = _parts(name)
            if entry.dtype not in FP8 or {"", name, module} & scaled:
                continue
            if "scale" not in last.lower() or module not in packed:
                yield name

    def one(self, table: Table, name: str) -> LogicalTensor:
        """As ``Shaped.one``."""
        codes = PartRef(name, table[name].dtype, tuple(table[name].shape))
        return LogicalTensor(name, codes.shape, self.name, {"codes": codes})

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """As ``Format.decode``."""
        from shardmerge.formats.values import as_float32

        values = as_float32(blocks["codes"], logical.parts["codes"].dtype)
        return values.reshape(count, logical.columns)


def _scaled(table: Table) -> set[str]:
    """Return the tensors and the modules that have scales beside them; "" stands for all."""
    found = set()
    for name, entry in table.items():
        module, last = _parts(name)
        if last == _OF_FILE:
            found.add("")
        elif entry.dtype not in FP8 and _OF_MODULE.fullmatch(last):
            found.add(module or last)
        elif entry.dtype not in FP8 and "scale" in last.lower():
            found.add(name.removesuffix(last) + _OF_TENSOR.sub("", last))
    return found


def _packed(table: Table) -> set[str]:
    """Return the modules with packed weights, whose scales may be floats of 8 bits themselves."""
    return {
        _parts(name)[0]
        for name, entry in table.items()
        if entry.dtype in _PACKED and len(entry.shape) > 1
    }


def _parts(name: str) -> tuple[str, str]:
    """Return the module that a tensor is of, and its own name within it."""
    place = max(name.rfind("."), name.rfind("/"))
    return name[: max(place, 0)], name[place + 1 :]
