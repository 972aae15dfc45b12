"""A model as its tensors: what each is, as an expression over source tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardmerge import expression as ex
from shardmerge import fold
from shardmerge.lock import Lock


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
        raise NotImplementedError

    def row(self, tensor: str) -> fold.Row:
        raise NotImplementedError


class SourceModel(Model):
    """A source of the lock."""

    def __init__(self, key: str, lock: Lock) -> None:
        self.name = key
        source = lock.sources[key]
        ordered = sorted(source.tensors.items(), key=lambda i: (i[1].file, i[1].begin, i[0]))
        self.table = {name: Entry(t.dtype, t.shape) for name, t in ordered}
        self._leaves = {name: ex.Source(key, t.file, name, t.dtype, t.shape) for name, t in ordered}

    def expression(self, tensor: str) -> ex.Expression:
        return self._leaves[tensor]

    def row(self, tensor: str) -> fold.Row:
        return fold.leaf(self._leaves[tensor])
