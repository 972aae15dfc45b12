"""Small sources that jobs make before anything is merged, as expressions know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardmerge.algebra import expression as ex
from shardmerge.base.errors import UserError
from shardmerge.base.forms import Written

#: (model, file) of a source
FileKey = tuple[str, str]


@dataclass(frozen=True)
class MadeSource:
    """A safetensors file that a job makes before anything is merged, and expressions read.

    Args:
        kind: What its job does: a name in ``plan.making.MADE_KINDS``.
        title: What it is, in words; expressions call it so as a model.
        digest: Of all that determines it: what it is known by.
        spec: What its job is told.
        inputs: Files that the job reads, in a row for each model, the one that counts most first.
        text: Path of the text that it reads, or None.
        tensors: Dtype code and shape of each tensor of the file.
    """

    kind: str
    title: str
    digest: str
    spec: Written
    inputs: tuple[tuple[FileKey, ...], ...]
    text: str | None
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def file(self) -> str:
        return f"{self.digest}.safetensors"

    @property
    def key(self) -> FileKey:
        """What expressions call the file."""
        return self.title, self.file

    @property
    def identity(self) -> str:
        """What specifications of shards know its content by."""
        return f"{self.kind}:{self.digest}"

    @property
    def models(self) -> tuple[str, ...]:
        """The sources that the job reads."""
        return tuple(dict.fromkeys(model for row in self.inputs for model, _ in row))

    def tensor(self, name: str) -> ex.Source:
        """Return a tensor of the file, for expressions.

        Raises:
            UserError: If the job makes none of that name.
        """
        if name not in self.tensors:
            raise UserError(f"the {self.title} have no tensor {name!r}")
        return ex.Source(*self.key, name, *self.tensors[name])
