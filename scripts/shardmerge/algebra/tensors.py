"""The nodes that files hold: tensors of sources, as they are, decoded or arranged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from shardmerge.algebra.pieces import Arrangement, Patch, element_spans
from shardmerge.base.dtypes import promoted

_N = TypeVar("_N")
_T = TypeVar("_T")


def noted(expression: _N, name: str, find: Callable[[_N], _T]) -> _T:
    """Return what is found of an expression, kept with it: a plan asks many times for it.

    A cached property would do, but takes a lock each time.
    """
    notes = vars(expression)
    if name not in notes:
        notes[name] = find(expression)
    return notes[name]


@dataclass(frozen=True)
class Source:
    """A tensor of a source checkpoint, as it is stored.

    Args:
        model: Key of the source in the lock (the reference as the recipe writes it).
        file: Name of the safetensors file within the source.
        tensor: Name in that file.
        dtype: safetensors code of the stored elements.
        shape: As in the file's header.
    """

    model: str
    file: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    size: ClassVar[int] = 1


@dataclass(frozen=True)
class Decoded:
    """A tensor of floats that stored tensors of a source make: a quantised weight.

    Args:
        format: Name of the format that says how.
        parts: The stored tensors with their roles in the format, sorted by role.
        parameters: What else decoding needs, sorted pairs of plain values.
        output_shape: Of the floats.
        step: Rows that are best decoded together.
    """

    format: str
    parts: tuple[tuple[str, Source], ...]
    parameters: tuple[tuple[str, Any], ...]
    output_shape: tuple[int, ...]
    step: int = 1
    dtype: ClassVar[str] = "F32"

    @property
    def size(self) -> int:
        """The steps of an expression, see ``nodes``."""
        return 1 + len(self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.output_shape

    @property
    def lead(self) -> Source:
        """The stored tensor that tells where the whole lies: its codes."""
        return dict(self.parts).get("codes", self.parts[0][1])

    @property
    def model(self) -> str:
        return self.lead.model

    @property
    def file(self) -> str:
        return self.lead.file

    @property
    def tensor(self) -> str:
        return self.lead.tensor


@dataclass(frozen=True)
class Arranged:
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
    def shape(self) -> tuple[int, ...]:
        return self.output_shape

    @property
    def dtype(self) -> str:
        """Code of the type that holds the values of all operands."""
        return noted(self, "_dtype", lambda node: promoted([p.operand.dtype for p in node.pieces]))

    @property
    def lead(self) -> Source | Decoded:
        """The operand that tells where the whole lies."""
        return self.pieces[0].operand

    @property
    def model(self) -> str:
        return self.lead.model

    @property
    def file(self) -> str:
        return self.lead.file

    @property
    def tensor(self) -> str:
        return self.lead.tensor

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

    def __hash__(self) -> int:
        return noted(self, "_hash", lambda node: hash((node.pieces, node.output_shape)))
