"""What a job finds out of tokens that a model lacks: a small source, from which rows are made."""

from __future__ import annotations

from dataclasses import dataclass

from shardmerge.algebra import expression as ex
from shardmerge.algebra.transplant import MADE, ROWS, TURNED, WEIGHTS, TransplantSpec


@dataclass(frozen=True)
class Transplant:
    """What a job finds out of tokens that a model lacks.

    Args:
        spec: What it is told.
        source: The donor, or the source whose tokenizer splits the tokens.
        files: (source, name) of the files that it reads.
    """

    spec: TransplantSpec
    source: str
    files: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """What expressions call the result as a model."""
        return f"rows by {self.spec.method} of {self.source}"

    @property
    def file(self) -> str:
        return f"{self.spec.digest}.safetensors"

    @property
    def identity(self) -> str:
        """What specifications of shards know the result by."""
        return f"transplant:{self.spec.digest}"

    def of(self, operand: ex.Expression) -> ex.Expression:
        """Return the rows that are made of a tensor's."""
        if self.spec.method in TURNED:
            return ex.Source(
                self.key, self.file, MADE, "F32", (self.spec.count, *operand.shape[1:])
            )
        shape = self.spec.count, self.spec.most
        tables = (
            ex.Source(self.key, self.file, name, dtype, shape)
            for name, dtype in ((ROWS, "I32"), (WEIGHTS, "F32"))
        )
        return ex.RowSums(operand, *tables)
