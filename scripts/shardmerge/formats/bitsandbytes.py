"""bitsandbytes: int8 with a scale for every row (LLM.int8), and NF4 or FP4 in flat blocks.

int8: ``weight`` (I8 [rows, columns]) and ``SCB`` (F32 [rows]); ``weight = code * SCB / 127``, where
1/127 is a float32 factor. ``weight_format`` (U8) tells the order of elements; 0 is by rows.

4 bits: ``weight`` ([n, 1], two codes in a byte, the upper half first, counted through the whole
tensor), ``weight.absmax`` (F32, one for ``blocksize`` elements), ``weight.quant_map``, and
``weight.quant_state.bitsandbytes__nf4`` (or ``__fp4``), U8 that is JSON: shape, block size, type.
``weight = table[code] * absmax``. With double quantisation ``absmax`` is U8 and itself
``nested_quant_map[absmax] * nested_absmax + nested_offset``.

Dettmers et al. 2022, "LLM.int8()", https://arxiv.org/abs/2208.07339; Dettmers et al. 2023,
"QLoRA", https://arxiv.org/abs/2305.14314; https://github.com/bitsandbytes-foundation/bitsandbytes,
``functional.py`` (``QuantState``) and ``backends/default/ops.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.formats.boxes import at, matrix_rows, whole
from shardmerge.formats.interface import (
    MAX_ELEMENTS,
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

_STATE = ".quant_state.bitsandbytes__"
#: Longest JSON that describes a tensor; real ones have about 200 bytes.
_LONGEST = 65_536
_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_CODES = ("nf4", "fp4")
_PER_127 = 7.874015718698502e-3


@dataclass(frozen=True)
class Bnb8(Shaped):
    """Modules with an ``SCB``."""

    name = "bitsandbytes-int8"

    def stems(self, table: Table) -> Iterable[str]:
        """As ``Shaped.stems``."""
        return [stem + "." for stem in before(table, ".SCB")]

    def one(self, table: Table, module: str) -> LogicalTensor:
        """As ``Shaped.one``."""
        name = module + "weight"
        codes = part(table, name, name, ("I8",), (2,))
        scales = part(table, module + "SCB", name, ("F32",), (1, 2))
        filled(name, codes, scales)
        if scales.shape not in ((codes.shape[0],), (codes.shape[0], 1)):
            raise misfit(name, scales, codes.shape[:1], f"{name!r}")
        parts = {"codes": codes, "scales": scales}
        if module + "weight_format" in table:
            parts["order"] = part(table, module + "weight_format", name, ("U8",), (0, 1))
        return LogicalTensor(name, codes.shape, self.name, parts)

    def rows(self, logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
        """As ``Format.rows``."""
        lead, begin, end = matrix_rows(logical, first, count)
        boxes: dict[str, Box] = {"codes": (*at(lead), (begin, end), (0, logical.columns))}
        boxes["scales"] = ((begin, end), *whole(logical.parts["scales"])[1:])
        if "order" in logical.parts:
            boxes["order"] = whole(logical.parts["order"])
        return boxes

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """As ``Format.decode``."""
        import numpy as np

        if "order" in blocks and blocks["order"].any():
            raise UserError(
                "has its int8 codes in an order for one kind of GPU, which cannot be read",
                f"tensor {logical.name!r}",
                "Save the model again with a newer bitsandbytes.",
            )
        scales = blocks["scales"].reshape(count, 1)
        return blocks["codes"].astype(np.float32) * scales * np.float32(_PER_127)


@dataclass(frozen=True)
class Bnb4:
    """Tensors with a ``quant_state``."""

    name = "bitsandbytes-4bit"
    flat = False

    def needed(self, table: Table) -> list[str]:
        """Return the states: they tell shapes."""
        found = sorted(n for n in table if _STATE in n)
        return [part(table, n, n.split(_STATE)[0], ("U8",), (1,)).tensor for n in found]

    def logical(self, table: Table, contents: Mapping[str, bytes]) -> list[LogicalTensor]:
        """As ``Format.logical``."""
        states = [(*n.split(_STATE, 1), n) for n in sorted(table) if _STATE in n]
        return [self._one(table, name, _state(contents, key, name)) for name, _, key in states]

    def _one(self, table: Table, name: str, state: _State) -> LogicalTensor:
        codes = _codes(table, name, math.prod(state.shape))
        parts = {"codes": codes}
        kind = "U8" if state.nested else "F32"
        parts["scales"] = part(table, name + ".absmax", name, (kind,), (1,))
        blocks = -(-math.prod(state.shape) // state.block)
        if parts["scales"].shape != (blocks,):
            raise misfit(name, parts["scales"], (blocks,), "a block size of " + str(state.block))
        if state.nested:
            parts["nested"] = part(table, name + ".nested_absmax", name, ("F32",), (1,))
            parts["map"] = part(table, name + ".nested_quant_map", name, ("F32",), (1,))
            outer = -(-blocks // state.nested)
            if parts["nested"].shape != (outer,):
                raise misfit(name, parts["nested"], (outer,), f"{parts['scales'].tensor!r}")
            if parts["map"].shape != (256,):
                raise misfit(name, parts["map"], (256,), "8-bit codes")
        settings = (
            ("block", state.block),
            ("nested", state.nested),
            ("offset", state.offset),
            ("table", state.table),
        )
        return LogicalTensor(name, state.shape, self.name, parts, settings)

    def rows(self, logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
        """As ``Format.rows``."""
        block, nested = logical.parameter("block"), logical.parameter("nested")
        begin, end = first * logical.columns, (first + count) * logical.columns
        stored = 2 * _bytes(logical.parts["codes"])
        boxes: dict[str, Box] = {"codes": ((begin // stored, -(-end // stored)), (0, 1))}
        boxes["scales"] = ((begin // block, -(-end // block)),)
        if nested:
            wide = block * nested
            boxes["nested"] = ((begin // wide, -(-end // wide)),)
            boxes["map"] = whole(logical.parts["map"])
        return boxes

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """As ``Format.decode``."""
        import numpy as np

        from shardmerge.formats.values import BITSANDBYTES, nibbles

        block = logical.parameter("block")
        begin, end = first * logical.columns, (first + count) * logical.columns
        stored = np.ascontiguousarray(blocks["codes"]).reshape(-1).view(np.uint8)
        skipped = begin - begin // (2 * _bytes(logical.parts["codes"])) * (
            2 * _bytes(logical.parts["codes"])
        )
        codes = nibbles(stored, high_first=True)[skipped : skipped + end - begin]
        scales = self._scales(logical, blocks, begin // block)
        which = np.arange(begin, end) // block - begin // block
        values = BITSANDBYTES[logical.parameter("table")][codes] * scales[which]
        return values.reshape(count, logical.columns)

    def _scales(self, logical: LogicalTensor, blocks: Blocks, first: int) -> np.ndarray:
        """Return the scales of blocks from the first on, float32."""
        import numpy as np

        nested = logical.parameter("nested")
        if not nested:
            return blocks["scales"]
        which = np.arange(first, first + len(blocks["scales"])) // nested - first // nested
        inner = blocks["map"][blocks["scales"]] * blocks["nested"][which]
        return inner + np.float32(logical.parameter("offset"))


@dataclass(frozen=True)
class _State:
    """What the JSON says: shape, elements of a block, table, blocks of a nested block or 0."""

    shape: tuple[int, ...]
    block: int
    table: str
    nested: int
    offset: float


def _bytes(codes: PartRef) -> int:
    return {"F16": 2, "BF16": 2, "F32": 4}.get(codes.dtype, 1)


def _codes(table: Table, name: str, elements: int) -> PartRef:
    """Return the codes, which may be stored under any type (``bnb_4bit_quant_storage``)."""
    codes = part(table, name, name, ("U8", "I8", "F16", "BF16", "F32"), (2,))
    expected = (-(-elements // (2 * _bytes(codes))), 1)
    if codes.shape != expected:
        raise misfit(name, codes, expected, f"a tensor of {elements} elements")
    return codes


def _state(contents: Mapping[str, bytes], key: str, name: str) -> _State:
    """Return the checked state of a tensor.

    Raises:
        UserError: If it is not JSON, or says what no such tensor has.
    """
    where = f"tensor {name!r}"
    raw = contents.get(key)
    if raw is None:
        raise UserError(f"needs the content of {key!r}, which was not read", where)
    try:
        data = json.loads(raw) if len(raw) <= _LONGEST else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(f"has a {key!r} that is not a table in JSON", where)
    try:
        state = _parsed(data)
    except (KeyError, TypeError, ValueError, OverflowError):
        state = None
    if state is None or key.rsplit("__", 1)[1] != state.table:
        raise UserError(f"has a {key!r} with a shape, block size or type that cannot be", where)
    return state


def _parsed(data: Mapping[str, Any]) -> _State | None:
    shape, nested = tuple(data["shape"]), data.get("nested_blocksize", 0)
    offset = data.get("nested_offset", 0.0)
    right = [
        0 < len(shape) <= 8 and all(type(n) is int and 0 < n <= MAX_ELEMENTS for n in shape),
        data["blocksize"] in _SIZES and type(data["blocksize"]) is int,
        data["quant_type"] in _CODES,
        type(nested) is int and (nested in _SIZES or nested == 0),
        data.get("nested_dtype", "float32") == "float32",
        type(offset) in (int, float) and abs(offset) < 3e38,
    ]
    if not all(right) or math.prod(shape) > MAX_ELEMENTS:
        return None
    return _State(shape, data["blocksize"], data["quant_type"], nested, float(offset))


def announced(said: Announcement) -> tuple[Bnb8, Bnb4] | None:
    """Return the formats if a config says ``bitsandbytes``."""
    return (Bnb8(), Bnb4()) if said.method == "bitsandbytes" else None
