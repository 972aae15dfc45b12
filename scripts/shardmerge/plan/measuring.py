"""Jobs that measure whole models before anything is merged: what they read, make and need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.base import forms
from shardmerge.base.forms import entry
from shardmerge.plan.files import load_spec_of


@dataclass(frozen=True)
class MeasureJob:
    """A job that measures models.

    Args:
        output: Path of the safetensors file that it writes.
        digest: Of all that determines it; names its specification.
        kind: As of ``ModelMeasurement``.
        models: Paths of all files of each model, the one that is measured first.
        text: Path of the text that it reads, or None.
        identities: Of the content of each file, the text's the last.
        memory: Bytes that it needs at most.
    """

    output: str
    digest: str
    kind: str
    models: tuple[tuple[str, ...], ...]
    text: str | None
    identities: tuple[str, ...]
    memory: int

    @property
    def files(self) -> tuple[str, ...]:
        """All that it reads, in the order of the identities."""
        return (*(path for files in self.models for path in files), *filter(None, [self.text]))

    @property
    def folders(self) -> tuple[str, ...]:
        """The models' folders."""
        return tuple(files[0].rpartition("/")[0] for files in self.models)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasureJob:
        """Return the job that ``dataclasses.asdict`` made JSON-able."""
        models = tuple(map(tuple, data["models"]))
        return cls(**{**data, "models": models, "identities": tuple(data["identities"])})


@dataclass(frozen=True)
class MeasureSpec(forms.Written):
    """What such a job does.

    Args:
        kind: As of ``ModelMeasurement``.
        options: Likewise.
    """

    kind: str = entry(forms.text)
    options: Mapping[str, Any] = entry(forms.table)


def load_measure_spec(name: str) -> MeasureSpec:
    """Return the specification of a job of this process's plan; as ``files.load_spec``.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    return load_spec_of(MeasureSpec, name, "a measurement")
