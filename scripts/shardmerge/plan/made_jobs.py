"""Jobs that make small sources before anything is merged: what they read, write and need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MadeJob:
    """A job that makes a source.

    Args:
        output: Path of the safetensors file that it writes.
        digest: Of all that determines it; names its specification.
        kind: A name in ``plan.making.MADE_KINDS``.
        inputs: Paths of the files that it reads, in a row for each model.
        text: Path of the text that it reads, or None.
        identities: Of the content of each file, the text's the last.
        environment: Name of the environment that it runs in.
        memory: Bytes that it needs at most.
        bytes_read, bytes_written: What it must move.
    """

    output: str
    digest: str
    kind: str
    inputs: tuple[tuple[str, ...], ...]
    text: str | None
    identities: tuple[str, ...]
    environment: str
    memory: int
    bytes_read: int
    bytes_written: int

    @property
    def files(self) -> tuple[str, ...]:
        """All that it reads, in the order of the identities."""
        return (*(path for files in self.inputs for path in files), *filter(None, [self.text]))

    @property
    def folders(self) -> tuple[str, ...]:
        """The models' folders."""
        return tuple(files[0].rpartition("/")[0] for files in self.inputs)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MadeJob:
        """Return the job that ``dataclasses.asdict`` made JSON-able."""
        inputs = tuple(map(tuple, data["inputs"]))
        return cls(**{**data, "inputs": inputs, "identities": tuple(data["identities"])})
