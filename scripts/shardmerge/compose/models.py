"""A model as its tensors: what each is, as an expression over source tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.base.numerics import Numerics
from shardmerge.base.weightfolders import folder_of, in_folder, own_name
from shardmerge.compose.architecture.names import layer_counts
from shardmerge.compose.architecture.predictors import real_layers
from shardmerge.formats.interface import LogicalTensor
from shardmerge.sources.lock import Lock
from shardmerge.sources.quantised import weights_of

#: Where a tensor stands among a model's files: files in their order, and the place in one.
Place = tuple[tuple[tuple[int, str], ...], int]


#: Code of the type that quantised weights count as.
_DECODED = "BF16"


class Entry(NamedTuple):
    """A tensor of a model: dtype code and shape."""

    dtype: str
    shape: tuple[int, ...]


class Model:
    """A model that a stage reads or makes: its tensors in order, and what each is."""

    name: str
    table: Mapping[str, Entry]
    #: What config.json says of it, or of the source that it follows.
    config: Mapping[str, Any]

    @property
    def layer_counts(self) -> Mapping[str, int]:
        """The number of layers of every stack, without those for multi-token prediction."""
        return layer_counts(self.table)

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

    def folder(self, tensor: str) -> str:
        """Return the folder with weights of its own that a tensor is of, "" if none."""
        return folder_of(tensor)


class SourceModel(Model):
    """A source of the lock: its tensors as they are without quantisation.

    A quantised weight counts as one of bfloat16 where the recipe names no dtype.

    Args:
        key: Of the source.
        lock: It is in.
        numerics: How values are rounded, and by which kernels methods are computed.
    """

    def __init__(self, key: str, lock: Lock, numerics: Numerics) -> None:
        self.name = key
        source = lock.sources[key]
        weights = weights_of(source, f"model {key!r}")
        self._source_folder = source.folder_of
        self.is_stale, self._stored = weights.stale, source.tensors
        found = {
            name: (_DECODED, one.shape, self._decoded(one)) for name, one in weights.decoded.items()
        }
        found |= {name: (t.dtype, t.shape, self._source(name)) for name, t in weights.plain.items()}
        self._leads = {
            name: source.tensors[in_folder(source.folder_of(leaf.file), leaf.tensor)]
            for name, (*_, leaf) in found.items()
        }
        ordered = sorted(found.items(), key=lambda item: (*self._begin(item[0]), item[0]))
        self.table = {name: Entry(dtype, shape) for name, (dtype, shape, _) in ordered}
        self._leaves = {name: leaf for name, (*_, leaf) in ordered}
        self._rounds = not numerics.rounds_once
        self.config = source.config

    @cached_property
    def layer_counts(self) -> Mapping[str, int]:
        return real_layers(self.table, self.config)

    def expression(self, tensor: str) -> ex.Expression:
        leaf = self._leaves[tensor]
        if self._rounds and isinstance(leaf, ex.Decoded):
            return ex.Cast(leaf, _DECODED)  # as mergekit reads a copy that was saved so
        return leaf

    def row(self, tensor: str) -> fold.Row:
        return fold.leaf(self._leaves[tensor])

    def place(self, tensor: str) -> Place:
        file, begin = self._begin(tensor)
        return ((0, file),), begin

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        return self.name, stack, number

    def folder(self, tensor: str) -> str:
        return self._source_folder(self._leads[tensor].file)

    @cached_property
    def decoded(self) -> dict[str, ex.Decoded]:
        """The tensors that are decoded."""
        return {n: leaf for n, leaf in self._leaves.items() if isinstance(leaf, ex.Decoded)}

    def _begin(self, tensor: str) -> tuple[str, int]:
        return self._leads[tensor].file, self._leads[tensor].begin

    def _source(self, tensor: str) -> ex.Source:
        stored = self._stored[tensor]
        own = own_name(tensor, self._source_folder(stored.file))
        return ex.Source(self.name, stored.file, own, stored.dtype, stored.shape)

    def _decoded(self, one: LogicalTensor) -> ex.Decoded:
        parts = ((role, self._source(ref.tensor)) for role, ref in sorted(one.parts.items()))
        return ex.Decoded(one.format, tuple(parts), one.parameters, one.shape, one.step)
