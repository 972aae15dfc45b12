"""A shard of a compressed export: read back by our own decoders, compared with the model's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardmerge import formats
from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, sha256_of
from shardmerge.base.forms import entry
from shardmerge.base.safetensors import TensorEntry, read_header
from shardmerge.export.record import ExportFile
from shardmerge.export.selection import Selection
from shardmerge.formats.interface import LogicalTensor

if TYPE_CHECKING:
    import numpy as np

#: What to do about a file that is not as it was made.
REMAKE = "Delete it and run the workflow again."
#: Elements that are compared at a time.
_PIECE = 1 << 20


@dataclass(frozen=True)
class ShardComparison:
    """How a shard of an export compares with the model's.

    Args:
        file: The shard, by content.
        bits: Of all its tensors.
        elements: Of all the model's tensors in it.
        stored: How many tensors it has.
        same: How many tensors are the model's, bit by bit.
        errors: Of each quantised matrix, as ``ExportErrors`` has it.
        farthest: Of the same, the largest difference of a value.
    """

    file: ExportFile = entry(forms.made_of(ExportFile))
    bits: int = entry(forms.count)
    elements: int = entry(forms.count)
    stored: int = entry(forms.count)
    same: int = entry(forms.count)
    errors: Mapping[str, float] = entry(forms.mapped(forms.number))
    farthest: Mapping[str, float] = entry(forms.mapped(forms.number))


class _File:
    """A safetensors file, its tensors as numpy has them (``formats.values.stored_type``)."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path = path
        self.tensors: Mapping[str, TensorEntry] = read_header(path).tensors
        self._bytes = np.memmap(path, np.uint8, "r")

    def raw(self, name: str) -> np.ndarray:
        """Return the bytes of a tensor."""
        place = self.tensors[name]
        return self._bytes[place.begin : place.end]

    def array(self, name: str) -> np.ndarray:
        """Return a tensor in its shape."""
        from shardmerge.formats.values import stored_type

        place = self.tensors[name]
        return self.raw(name).view(stored_type(place.dtype)).reshape(place.shape)


def compare_shard(export: Path, model: Path, config: Path, selection: Selection) -> ShardComparison:
    """Compare all values of a shard with those of the model's.

    Args:
        export: The shard.
        model: The model's of the same name.
        config: The export's config.json.
        selection: Which weights are quantised.

    Raises:
        UserError: If a tensor is missing, is none that it should have, is not the model's though
            it should be, or has values that are not finite.
    """
    made, own = _File(export), _File(model)
    chosen = set(selection.weights) & set(own.tensors)
    reading = formats.detect(load_json(config), {}, made.tensors, str(config.parent))
    logical: Mapping[str, LogicalTensor] = {}
    claimed: set[str] = set()
    if isinstance(reading, formats.Reading):
        contents = {n: bytes(made.raw(n)) for n in reading.needed(made.tensors)}
        logical = reading.logical(made.tensors, contents)
        claimed = reading.claimed(made.tensors, logical)
    _check_names(set(logical), chosen, "quantised", str(export))
    rest = set(own.tensors) - chosen
    _check_names(set(made.tensors) - claimed, rest, "as it is", str(export))
    for name in sorted(rest):
        if not _is_same(made, own, name):
            raise UserError(f"tensor {name!r} is not the model's", str(export), REMAKE)
    pairs = {name: _errors(made, own, logical[name]) for name in sorted(chosen)}
    return ShardComparison(
        file=ExportFile(sha256=sha256_of(export), size=export.stat().st_size),
        bits=8 * sum(place.end - place.begin for place in made.tensors.values()),
        elements=sum(math.prod(place.shape) for place in own.tensors.values()),
        stored=len(made.tensors),
        same=len(rest),
        errors={name: told_digits(error) for name, (error, _) in pairs.items()},
        farthest={name: told_digits(far) for name, (_, far) in pairs.items()},
    )


def _check_names(found: set[str], wanted: set[str], how: str, where: str) -> None:
    for name in sorted(found ^ wanted):
        what = "should not have" if name in found else "lacks"
        raise UserError(f"{what} tensor {name!r} {how}", where, REMAKE)


def _is_same(made: _File, own: _File, name: str) -> bool:
    import numpy as np

    one, other = made.tensors[name], own.tensors[name]
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = _pieces(one.end - one.begin, 8 * _PIECE)
    return all(np.array_equal(made.raw(name)[a:b], own.raw(name)[a:b]) for a, b in pairs)


def _errors(made: _File, own: _File, logical: LogicalTensor) -> tuple[float, float]:
    """Return the error of a weight, and the largest difference of a value."""
    import numpy as np

    from shardmerge.formats.values import as_float32

    name, code = logical.name, own.tensors[logical.name].dtype
    if logical.shape != own.tensors[name].shape:
        raise UserError(f"tensor {name!r} has another shape than the model's", str(made.path))
    step = max(1, _PIECE // logical.columns)
    wanted, squares, size, far = own.array(name), 0.0, 0.0, 0.0
    parts = {role: made.array(part.tensor) for role, part in logical.parts.items()}
    for first, last in _pieces(logical.rows, step - step % logical.step or logical.step):
        boxes = formats.rows(logical, first, last - first)
        blocks = {r: parts[r][tuple(slice(*ends) for ends in box)] for r, box in boxes.items()}
        values = formats.decode(logical, blocks, first, last - first)
        exact = as_float32(wanted[first:last], code)
        apart = np.subtract(values, exact, dtype=np.float64)
        squares += float(np.sum(np.square(apart)))
        size += float(np.sum(np.square(exact, dtype=np.float64)))
        far = max(far, float(np.max(np.abs(apart))))
    if not (math.isfinite(squares) and math.isfinite(size)):
        raise UserError(
            f"tensor {name!r} has values that are infinite or NaN",
            str(made.path),
            "Infinite values and NaN of a model cannot be quantised: see its verify.json.",
        )
    return math.sqrt(squares / size) if size else math.sqrt(squares), far


def _pieces(count: int, step: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + step, count)) for first in range(0, count, step))


def told_digits(value: float) -> float:
    """Return a number with the digits that are told."""
    return float(f"{value:.4g}")
