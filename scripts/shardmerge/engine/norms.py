"""The norm of a whole task vector: a job reads two models, and writes one number."""

from __future__ import annotations

import math
import mmap
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import TensorEntry, read_header, write_header
from shardmerge.base.unfinished import Keeping, Unfinished
from shardmerge.engine.buffers import torch_dtype
from shardmerge.methods.kernels.blocks import totals

#: Of a tensor's file, opened; and its place in it.
_Place = tuple[mmap.mmap, TensorEntry]


def measure_norm(
    tensors: Sequence[str | Sequence[str]],
    finetuned: Sequence[Path],
    base: Sequence[Path],
    output: Path,
    *,
    confirm: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    keeping: Keeping = Keeping(),
) -> float:
    """Write the norm of the difference of two models; return it.

    Sums are in float64 and in a fixed order, so that the bits depend on no processor.

    Args:
        tensors: Names of the tensors in both, or a name in each.
        finetuned, base: safetensors files of the models.
        output: A file with the tensor ``norm``, float32 of one element.
        confirm: Called before the file is put in place.
        progress: Told how many tensors are done.
        keeping: How the sums of the first tensors are kept, and what may take them over.

    Raises:
        UserError: If a tensor is not there, shapes differ, or the norm is not finite.
    """
    own, others = _open(finetuned), _open(base)
    with Unfinished(output, keeping, confirm) as work:
        squares = array("d", *map(bytes, work.arrays[:1]))
        for number, name in enumerate(tensors[len(squares) :], len(squares) + 1):
            pair = (name, name) if isinstance(name, str) else tuple(name)
            square = _square(_place(own, pair[0], finetuned), _place(others, pair[1], base))
            squares.append(square)
            progress(number, len(tensors))
            work.keep({"tensors": number}, [squares.tobytes()])
        norm = math.sqrt(math.fsum(squares))
        value = torch.tensor([norm], dtype=torch.float32)
        if not bool(value.isfinite().all()):
            work.restart()
            raise UserError(
                "the difference from the base model is infinite or NaN", str(finetuned[0].parent)
            )
        work.write(write_header([("norm", "F32", (1,))], {"format": "pt"}))
        work.write(value.numpy().tobytes())
    return norm


def _open(files: Sequence[Path]) -> dict[str, _Place]:
    found: dict[str, _Place] = {}
    for path in files:
        header = read_header(path)
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found |= {name: (data, entry) for name, entry in header.tensors.items()}
    return found


def _place(places: dict[str, _Place], name: str, files: Sequence[Path]) -> _Place:
    if name not in places:
        raise UserError(f"has no tensor {name!r}", str(files[0].parent))
    return places[name]


def _square(own: _Place, other: _Place) -> float:
    count = math.prod(own[1].shape)
    if own[1].shape != other[1].shape:
        raise UserError(f"shapes differ: {list(own[1].shape)} and {list(other[1].shape)}")

    def difference(span: slice) -> Iterator[torch.Tensor]:
        part = _values(own, span) - _values(other, span)
        yield part.mul_(part)

    return totals(difference, count)[0] if count else 0.0


def _values(place: _Place, span: slice) -> torch.Tensor:
    data, entry = place
    dtype = torch_dtype(entry.dtype)
    count, first = span.stop - span.start, entry.begin + span.start * dtype.itemsize
    raw = bytearray(data[first : first + count * dtype.itemsize])
    return torch.frombuffer(raw, dtype=dtype, count=count).double()
