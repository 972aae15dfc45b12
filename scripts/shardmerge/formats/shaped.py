"""What formats have in common whose logical tensors follow from names and shapes alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from shardmerge.formats.interface import FLOATS, LogicalTensor, PartRef, Table, filled, part

#: Role of a part, what its name has behind the stem, dtype code and shape.
_Part = tuple[str, str, str, tuple[int, ...]]


class Shaped(ABC):
    """``logical`` and ``needed`` of a format that reads no content of stored tensors for them.

    Args:
        endings: What the names of the parts have behind a stem, where ``stems`` has seen all of
            them: of tensors whose parts have the same types and shapes only one is looked at.
    """

    name: str
    flat = False
    endings: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def stems(self, table: Table) -> Iterable[str]:
        """Return what the names of each logical tensor's parts begin with, in any order."""

    @abstractmethod
    def one(self, table: Table, stem: str) -> LogicalTensor:
        """Return the logical tensor of a stem.

        Raises:
            UserError: If parts are missing or do not fit each other; names the tensor.
        """

    def logical(self, table: Table, contents: Mapping[str, bytes]) -> list[LogicalTensor]:
        """As ``Format.logical``."""
        stems = sorted(self.stems(table))
        if not self.endings:
            return [self.one(table, stem) for stem in stems]
        firsts: dict[tuple[Any, ...], tuple[LogicalTensor, list[_Part]]] = {}
        found = []
        for stem in stems:
            entries = [table[stem + ending] for ending in self.endings]
            kind = tuple([fact for entry in entries for fact in (entry.dtype, entry.shape)])
            if kind in firsts:
                found.append(_renamed(*firsts[kind], stem))
            else:
                one = self.one(table, stem)
                found.append(one)
                parts = sorted(one.parts.items())
                firsts[kind] = one, [(r, p.tensor.removeprefix(stem), *p[1:]) for r, p in parts]
        return found

    def needed(self, table: Table) -> list[str]:
        """Return no tensors: shapes tell all."""
        return []


class Packed(Shaped):
    """A format whose modules have a ``qweight``: codes in words of 32 bits, scales and zeros."""

    group_size: int

    def stems(self, table: Table) -> Iterable[str]:
        """As ``Shaped.stems``."""
        return [stem + "." for stem in before(table, ".qweight")]

    @staticmethod
    def _packed(table: Table, module: str, name: str) -> tuple[PartRef, PartRef, PartRef]:
        """Return codes, scales and zeros of a module, for the tensor of that name.

        Raises:
            UserError: If one is missing, of another type or rank, or empty.
        """
        codes = part(table, module + "qweight", name, ("I32",), (2,))
        scales = part(table, module + "scales", name, FLOATS, (2,))
        zeros = part(table, module + "qzeros", name, ("I32",), (2,))
        filled(name, codes, scales, zeros)
        return codes, scales, zeros

    def _group(self, inputs: int) -> int:
        """Return how many inputs share a scale."""
        return self.group_size if self.group_size > 0 else inputs


def _renamed(one: LogicalTensor, parts: Iterable[_Part], stem: str) -> LogicalTensor:
    """Return a tensor that differs from another in what the names of its parts begin with."""
    own = {role: PartRef(stem + ending, dtype, shape) for role, ending, dtype, shape in parts}
    held = one.shape, one.format, own, one.parameters, one.dtype, one.step
    return LogicalTensor(stem, *held, first=one)


def before(table: Table, ending: str) -> list[str]:
    """Return what stands before an ending, for the tensors that have it."""
    return [name.removesuffix(ending) for name in table if name.endswith(ending)]
