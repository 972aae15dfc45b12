"""What formats have in common whose logical tensors follow from names and shapes alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from shardmerge.formats.interface import LogicalTensor, Table


class Shaped(ABC):
    """``logical`` and ``needed`` of a format that reads no content of stored tensors for them."""

    name: str
    flat = False

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
        return [self.one(table, stem) for stem in sorted(self.stems(table))]

    def needed(self, table: Table) -> list[str]:
        """Return no tensors: shapes tell all."""
        return []


def before(table: Table, ending: str) -> list[str]:
    """Return what stands before an ending, for the tensors that have it."""
    return [name.removesuffix(ending) for name in table if name.endswith(ending)]
