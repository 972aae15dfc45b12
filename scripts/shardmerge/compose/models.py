"""A model as its tensors: what each is, as an expression over source tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.sources.lock import Lock
from shardmerge.sources.quantised import check_plain

#: Where a tensor stands among a model's files: files in their order, and the place in one.
Place = tuple[tuple[tuple[int, str], ...], int]


@dataclass(frozen=True)
class Entry:
    """A tensor of a model: dtype code and shape."""

    dtype: str
    shape: tuple[int, ...]


class Model:
    """A model that a stage reads or makes: its tensors in order, and what each is."""

    name: str
    table: Mapping[str, Entry]

    def expression(self, tensor: str) -> ex.Expression:
        """Return what a tensor is."""
        raise NotImplementedError

    def row(self, tensor: str) -> fold.Row:
        """Return what a tensor is as a row of coefficients."""
        raise NotImplementedError

    def place(self, tensor: str) -> Place:
        """Return where a tensor stands; tensors with one first part share a file."""
        raise NotImplementedError

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        """Return source, stack and number of the layer that a layer was in the first place."""
        raise NotImplementedError


class SourceModel(Model):
    """A source of the lock."""

    def __init__(self, key: str, lock: Lock) -> None:
        self.name = key
        source = lock.sources[key]
        check_plain(source, f"model {key!r}")
        ordered = sorted(source.tensors.items(), key=lambda i: (i[1].file, i[1].begin, i[0]))
        self.table = {name: Entry(t.dtype, t.shape) for name, t in ordered}
        self._leaves = {name: ex.Source(key, t.file, name, t.dtype, t.shape) for name, t in ordered}
        self._begins = {name: t.begin for name, t in ordered}

    def expression(self, tensor: str) -> ex.Expression:
        return self._leaves[tensor]

    def row(self, tensor: str) -> fold.Row:
        return fold.leaf(self._leaves[tensor])

    def place(self, tensor: str) -> Place:
        return ((0, self._leaves[tensor].file),), self._begins[tensor]

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        return self.name, stack, number
