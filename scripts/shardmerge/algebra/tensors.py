"""The nodes that files hold: tensors of sources, as they are, decoded or arranged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from shardmerge.algebra.pieces import Arrangement, Patch, element_spans
from shardmerge.base.dtypes import promoted

_N = TypeVar("_N")
_T = TypeVar("_T")
_UNKNOWN = object()


def noted(expression: _N, name: str, find: Callable[[_N], _T]) -> _T:
    """Return what is found of an expression, kept with it: a plan asks many times for it.

    A cached property would do, but takes a lock each time, and gives each object a dictionary.
    """
    found = getattr(expression, name, _UNKNOWN)
    if found is _UNKNOWN:
        found = find(expression)
        object.__setattr__(expression, name, found)
    return found


def hashed_once(cls: type[_N]) -> type[_N]:
    """Let a kind of node keep its hash, which is that of all that it is made of."""
    whole = cls.__hash__

    def __hash__(self: _N) -> int:
        found = getattr(self, "_hash", None)
        if found is None:
            found = whole(self)
            object.__setattr__(self, "_hash", found)
        return found

    cls.__hash__ = __hash__
    return cls


class _Led:
    """What holds tensors of files, of which one tells where the whole lies: the ``lead``."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.output_shape

    @property
    def model(self) -> str:
        return self.lead.model

    @property
    def file(self) -> str:
        return self.lead.file

    @property
    def tensor(self) -> str:
        return self.lead.tensor


class _SourceFields(NamedTuple):
    model: str
    file: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]


class Source(_SourceFields):
    """A tensor of a source checkpoint, as it is stored.

    A tuple, as a plan makes and hashes hundreds of thousands.

    Args:
        model: Key of the source in the lock (the reference as the recipe writes it).
        file: Name of the safetensors file within the source.
        tensor: Name in that file.
        dtype: safetensors code of the stored elements.
        shape: As in the file's header.
    """

    size: ClassVar[int] = 1


class _DecodedFields(NamedTuple):
    format: str
    parts: tuple[tuple[str, Source], ...]
    parameters: tuple[tuple[str, Any], ...]
    output_shape: tuple[int, ...]
    step: int = 1


class Decoded(_DecodedFields, _Led):
    """A tensor of floats that stored tensors of a source make: a quantised weight.

    Args:
        format: Name of the format that says how.
        parts: The stored tensors with their roles in the format, sorted by role.
        parameters: What else decoding needs, sorted pairs of plain values.
        output_shape: Of the floats.
        step: Rows that are best decoded together.
    """

    dtype: ClassVar[str] = "F32"

    @property
    def size(self) -> int:
        """The steps of an expression, see ``nodes``."""
        return 1 + len(self.parts)

    @property
    def lead(self) -> Source:
        """Its codes."""
        for role, source in self.parts:
            if role == "codes":
                return source
        return self.parts[0][1]


@hashed_once
@dataclass(frozen=True)
class Arranged(_Led):
    """A tensor that boxes of other tensors of files make: a stack of experts, a slice of rows.

    Args:
        pieces: What is where, none over another, and 0 where none is; operands are tensors of
            sources, decoded or not.
        output_shape: Of the whole.
    """

    pieces: tuple[Patch, ...]
    output_shape: tuple[int, ...]
    size: ClassVar[int] = 1

    @property
    def dtype(self) -> str:
        """Code of the type that holds the values of all operands."""
        return noted(self, "_dtype", lambda node: promoted([p.operand.dtype for p in node.pieces]))

    @property
    def lead(self) -> Source | Decoded:
        """The operand of the first piece."""
        return self.pieces[0].operand

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement(self.output_shape, self.pieces)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """For each piece its first element and the one behind its last."""
        return noted(self, "_spans", lambda node: element_spans(node.arrangement))

    @property
    def is_full(self) -> bool:
        """Whether every element comes from somewhere."""
        return noted(self, "_is_full", lambda node: node.arrangement.is_full)
