"""What a shard is made from, in open files: read again by a check."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import FileLeaf
from shardmerge.algebra.samples import Runs
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import TensorEntry
from shardmerge.check.samples import TensorFile
from shardmerge.engine.arranging import Band, fill_elements
from shardmerge.engine.decoding import Held, decode_elements
from shardmerge.engine.locations import AnyLocation, Location, locate, span_ranges
from shardmerge.engine.stored import stored_deltas
from shardmerge.formats.values import stored_type


class OpenLeaves:
    """The source tensors and stored task vectors of a specification, in open files."""

    def __init__(
        self,
        spec: ShardSpec,
        sources: Mapping[tuple[str, str], Path],
        deltas: list[Path],
        stack: contextlib.ExitStack,
        beside: Path | None = None,
    ) -> None:
        self.beside = beside
        self._sources = {k: stack.enter_context(TensorFile(p)) for k, p in sources.items()}
        self._deltas = {Path(path): stack.enter_context(TensorFile(path)) for path in deltas}
        self._files = [*self._sources.values(), *self._deltas.values()]
        self.stored = stored_deltas(spec, deltas)

    def locate(self, leaf: FileLeaf) -> AnyLocation:
        """Return where a leaf lies, for ``read_elements``."""
        return locate(leaf, self._location)

    def read_elements(self, leaf: AnyLocation, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements of a leaf."""
        leaf.read(self._fill_from, first, count, into)

    def read_spans(self, leaf: AnyLocation, spans: Runs, into: memoryview) -> bool:
        """Fill the beginning of a buffer with spans of a leaf's elements, one after the other.

        Returns:
            Whether that is done: of a leaf that lies in a file as it is.
        """
        ranges = span_ranges(leaf, spans)
        if ranges is not None:
            self._files[leaf.file].fill_ranges(ranges, into)
        return ranges is not None

    def _fill_from(self, number: int, offset: int, into: memoryview) -> None:
        self._files[number].fill(offset, into)

    def read(self, leaf: ex.Source | ex.Decoded | ex.Arranged | ex.Delta, runs: Runs) -> np.ndarray:
        """Return elements of a leaf as they are stored; of a decoded one its float32 values."""
        if isinstance(leaf, ex.Decoded):
            held: Held = {}
            made = [v for run in runs for v in decode_elements(leaf, self._part, held, *run)]
            return np.concatenate([np.zeros(0, np.float32), *made])
        if isinstance(leaf, ex.Arranged):
            return self._arranged(leaf, runs)
        file, entry = self._entry(leaf)
        return file.read(entry, runs)

    def _location(self, leaf: ex.Source | ex.Delta) -> Location:
        file, entry = self._entry(leaf)
        return Location(self._files.index(file), entry.begin, entry.dtype)

    def _entry(self, leaf: ex.Source | ex.Delta) -> tuple[TensorFile, TensorEntry]:
        """Return where a tensor lies that is as the plan says."""
        if isinstance(leaf, ex.Delta):
            place = self.stored[leaf]
            file, name = self._deltas[place.path], place.name
        else:
            file, name = self._sources[leaf.model, leaf.file], leaf.tensor
        entry = file.header.tensors.get(name)
        if entry is None or (entry.dtype, entry.shape) != (leaf.dtype, leaf.shape):
            raise UserError(
                f"has {described(entry)} where the plan has {leaf.dtype}{list(leaf.shape)}",
                f"{file.path}, tensor {name!r}",
                "The file changed since the plan was made.",
            )
        return file, entry

    def _arranged(self, leaf: ex.Arranged, runs: Runs) -> np.ndarray:
        held: Band = {}
        made = np.empty(sum(count for _, count in runs), stored_type(leaf.dtype))
        place = 0
        for first, count in runs:
            fill_elements(leaf, self._fill, held, first, made[place : place + count])
            place += count
        return made

    def _fill(self, part: ex.Source | ex.Decoded, begin: int, target: np.ndarray) -> None:
        target[:] = self.read(part, ((begin, len(target)),)).view(target.dtype)

    def _part(self, part: ex.Source, begin: int, end: int) -> np.ndarray:
        return self.read(part, ((begin, end - begin),)).view(stored_type(part.dtype))


def described(entry: TensorEntry | None) -> str:
    """Return what a header says of a tensor, for people."""
    return "no such tensor" if entry is None else f"{entry.dtype}{list(entry.shape)}"
