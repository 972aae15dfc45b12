"""A model as its tensors: what each is, as an expression over source tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from itertools import repeat
from typing import Any, NamedTuple

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.algebra.patterns import ADDED_BIAS, TensorKind, kind_of
from shardmerge.base.numerics import Numerics
from shardmerge.base.weightfolders import folder_of, own_name
from shardmerge.compose.architecture.names import layer_counts
from shardmerge.compose.architecture.predictors import real_layers
from shardmerge.formats.interface import LogicalTensor
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor, as_in_files
from shardmerge.sources.quantised import weights_of

#: Files of a model, each behind the number of what comes before or after it.
FilePlaces = tuple[tuple[int, str], ...]
#: Where a tensor stands among a model's files: files in their order, and the place in one.
Place = tuple[FilePlaces, int]

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

    def with_kind(self, tensor: str) -> tuple[ex.Expression, TensorKind | None]:
        """Return what a tensor is, and its kind if it is one of files."""
        found = self.expression(tensor)
        return found, kind_of(found)

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
        return folder_of(tensor) if "/" in tensor else ""


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
        self.is_stale = weights.stale
        files = {tensor.file for tensor in source.tensors.values()}
        self._folders = {file: source.folder_of(file) for file in files}
        leaves: dict[str, ex.Source | ex.Decoded] = self._stored(source)
        # of each tensor, of a decoded one those of its codes
        self._leads: Mapping[str, LockedTensor] = weights.plain
        if weights.decoded:
            stored, decoded = leaves, weights.decoded.items()
            leaves = {name: _decoded(one, stored) for name, one in decoded}
            leaves |= {name: stored[name] for name in weights.plain}
            leads = {name: source.tensors[one.lead.tensor] for name, one in decoded}
            self._leads = leads | weights.plain
        self._files: dict[str, FilePlaces] = {file: ((0, file),) for file in files}
        self._leaves = {name: leaves[name] for name in as_in_files(self._leads)}
        known: dict[Any, tuple[Entry, TensorKind | None]] = {}
        found = []
        for name, leaf in self._leaves.items():
            if type(leaf) is ex.Source:
                _, _, tensor, dtype, shape = leaf
                key: Any = (dtype, shape, tensor.endswith(ADDED_BIAS))
            else:  # the one that it differs from in names alone, if that is known
                one = weights.decoded[name]
                key = (one.first or one).name
            kind = known.get(key)
            if kind is None:
                dtype = _DECODED if type(leaf) is ex.Decoded else leaf.dtype
                kind = known[key] = Entry(dtype, leaf.shape), kind_of(leaf)
            found.append(kind)
        self.table: dict[str, Entry] = dict(zip(self._leaves, [e for e, _ in found], strict=True))
        self._kinds = dict(zip(self._leaves, [kind for _, kind in found], strict=True))
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

    def with_kind(self, tensor: str) -> tuple[ex.Expression, TensorKind | None]:
        leaf = self._leaves[tensor]
        if self._rounds and type(leaf) is ex.Decoded:
            return self.expression(tensor), None
        return leaf, self._kinds[tensor]

    def row(self, tensor: str) -> fold.Row:
        return fold.leaf(self._leaves[tensor])

    def place(self, tensor: str) -> Place:
        lead = self._leads[tensor]
        return self._files[lead.file], lead.begin

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        return self.name, stack, number

    def folder(self, tensor: str) -> str:
        return self._folders[self._leads[tensor].file]

    @cached_property
    def decoded(self) -> dict[str, ex.Decoded]:
        """The tensors that are decoded."""
        return {n: leaf for n, leaf in self._leaves.items() if isinstance(leaf, ex.Decoded)}

    def _stored(self, source: LockedSource) -> dict[str, ex.Source]:
        """Return all stored tensors of a source by their names in the model."""
        names: Iterable[str] = source.tensors
        if any(self._folders.values()):
            tensors = source.tensors.items()
            names = [own_name(name, self._folders[one.file]) for name, one in tensors]
        columns = tuple(zip(*source.tensors.values(), strict=True)) or ((),) * 3
        files, dtypes, shapes, *_ = columns
        rows = zip(repeat(self.name), files, names, dtypes, shapes)
        return dict(zip(source.tensors, map(partial(tuple.__new__, ex.Source), rows), strict=True))


def _decoded(one: LogicalTensor, stored: Mapping[str, ex.Source]) -> ex.Decoded:
    ordered = one.parts.items() if one.first else sorted(one.parts.items())
    parts = tuple([(role, stored[ref.tensor]) for role, ref in ordered])
    return ex.Decoded(one.format, parts, one.parameters, one.shape, one.step)
