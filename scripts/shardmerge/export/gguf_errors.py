"""How far the values of a GGUF file are from those of the model that it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import read_header
from shardmerge.export.gguf_metadata import FREQUENCIES
from shardmerge.export.record import ExportErrors

if TYPE_CHECKING:
    import numpy as np

#: Rows of a tensor that are compared, spread evenly.
COMPARED_ROWS = 256
#: Beyond this a tensor is no rounded copy: the converter stores something else in its place.
_ANOTHER = 0.9
#: The median error that a type may have, by the bits of a weight (up to so many).
_BOUNDS = ((2.2, 0.8), (3.0, 0.5), (4.0, 0.3), (5.4, 0.15), (7.0, 0.12), (12.0, 0.02), (99, 0.004))


@dataclass(frozen=True)
class Heads:
    """Heads whose rows the converter reorders, by the ending of the tensor's name."""

    queries: int
    keys: int

    def of(self, name: str) -> int | None:
        """Return the heads of a tensor, None if its rows stay in order."""
        kind = name.split(".")[-2] if "." in name else ""
        return {"attn_q": self.queries, "attn_k": self.keys}.get(kind)


class ModelTensors:
    """The tensors of a model's folder, read row by row.

    Args:
        folder: The model's.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for name in read_header(path).tensors:
                self._files[name] = path

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return read_header(self._files[name]).tensors[name].shape

    def rows(self, name: str, wanted: Sequence[int]) -> np.ndarray:
        """Return rows of a tensor as float32 of shape (rows, elements of a row)."""
        from safetensors import safe_open

        with safe_open(str(self._files[name]), "pt") as file:
            tensor = file.get_tensor(name)
            flat = tensor.reshape(-1, tensor.shape[-1])
            return flat[list(wanted)].float().numpy()


def compare_weights(
    readers: Sequence[Any], model: ModelTensors, names: Mapping[str, str], heads: Heads
) -> ExportErrors:
    """Return how far a file's weights are from the model's.

    Args:
        readers: ``gguf.GGUFReader`` of each file.
        model: The model's tensors.
        names: The model's name of each of the file's tensors.
        heads: Whose rows may be in another order.

    Raises:
        UserError: If a value is infinite or NaN that the model's is not.
    """
    errors: dict[str, float] = {}
    others: dict[str, str] = {}
    matrices: set[str] = set()
    for tensor in (tensor for reader in readers for tensor in reader.tensors):
        name, own = tensor.name, names.get(tensor.name)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        if name == FREQUENCIES:
            others[name] = "made from the configuration"
        elif own is None:
            others[name] = "its name is that of no tensor of the model"
        elif model.shape(own) != shape:
            others[name] = "stored in another shape"
        elif (error := _error(tensor, model, own, heads.of(name))) > _ANOTHER:
            others[name] = "stored otherwise by the converter"
        else:
            errors[name] = error
            if len(shape) > 1:
                matrices.add(name)
    if not errors:
        raise UserError("has no tensor that could be compared with the model's", "the export")
    values = sorted(error for name, error in errors.items() if name in matrices) or [0.0]
    return ExportErrors(
        compared=len(errors),
        rows=COMPARED_ROWS,
        median=_rounded(median(values)),
        largest=_rounded(values[-1]),
        tensors={name: _rounded(error) for name, error in sorted(errors.items())},
        not_compared=dict(sorted(others.items())),
    )


def check_errors(errors: ExportErrors, bits: float, where: str) -> None:
    """Refuse a file whose weights are farther from the model's than its type explains.

    Args:
        errors: From ``compare_weights``.
        bits: Of a weight.
        where: The file, for errors.

    Raises:
        UserError: If so.
    """
    bound = next(bound for most, bound in _BOUNDS if bits <= most)
    if errors.median > bound:
        raise UserError(
            f"has a median error of {errors.median:.2g}, and {bits:.1f} bits per weight explain at "
            f"most {bound}",
            where,
            "It is not published. Delete it to make it again, or try another llama.cpp.",
        )


def names_in_model(
    tensors: Sequence[str], architecture: str, layers: int, model: ModelTensors
) -> dict:
    """Return the model's name of each tensor of a file, as far as llama.cpp's table knows it."""
    import gguf

    codes = {name: code for code, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in codes:
        return {}
    table = gguf.get_tensor_name_map(codes[architecture], layers)
    found = {}
    for own in model:
        name = table.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is not None:
            found.setdefault(name, own)
    return {name: found[name] for name in tensors if name in found}


def _error(tensor: Any, model: ModelTensors, own: str, heads: int | None) -> float:
    """Return a tensor's error; of two orders of its rows, the smaller one."""
    import numpy as np
    from gguf import dequantize

    data = tensor.data.reshape(-1, tensor.data.shape[-1])
    rows = _spread(len(data))
    values = np.atleast_2d(dequantize(data[rows], tensor.tensor_type)).astype(np.float32)
    orders = [rows]
    if heads and len(data) % (2 * heads) == 0:
        orders.append([_before(row, len(data) // heads) for row in rows])
    found = [_relative(values, model.rows(own, order)) for order in orders]
    if not any(np.isfinite(found)):
        raise UserError("has infinite values or NaN", tensor.name)
    return min(error for error in found if np.isfinite(error))


def _before(row: int, size: int) -> int:
    """Return where a row was before pairs of a head's halves were put side by side.

    Args:
        row: In the file.
        size: Rows of a head.
    """
    head, within = divmod(row, size)
    return head * size + (within % 2) * (size // 2) + within // 2


def _relative(values: np.ndarray, wanted: np.ndarray) -> float:
    import numpy as np

    size = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(np.subtract(values, wanted, dtype=np.float64)))))
    return error / size if size else error


def _spread(count: int) -> list[int]:
    """Return the numbers of rows that are compared."""
    if count <= COMPARED_ROWS:
        return list(range(count))
    return [i * (count - 1) // (COMPARED_ROWS - 1) for i in range(COMPARED_ROWS)]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
