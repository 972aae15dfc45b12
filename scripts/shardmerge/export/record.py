"""What the check of an export found: written by the job that checks, read by all others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.forms import FormError, entry


@dataclass(frozen=True)
class ExportFile:
    """A file of an export: the SHA-256 and the number of its bytes."""

    sha256: str = entry(forms.sha256)
    size: int = entry(forms.count)


@dataclass(frozen=True)
class ExportErrors:
    """How far an export's weights are from the model's.

    The error of a tensor is the root of the mean square of the differences, in parts of that of
    the model's values.

    Args:
        compared: Tensors that were compared.
        rows: At most so many rows of each were; None if all were.
        median: Of the errors of all that are no vectors, which every type keeps as they are.
        largest: Of the same.
        tensors: The error of each tensor that was compared.
        not_compared: Tensors that the model has no counterpart of, with the reason.
        farthest: Of those of which all values were compared, the largest difference of one.
    """

    compared: int = entry(forms.count)
    rows: int | None = entry(forms.maybe(forms.count))
    median: float = entry(forms.number)
    largest: float = entry(forms.number)
    tensors: Mapping[str, float] = entry(forms.mapped(forms.number))
    not_compared: Mapping[str, str] = entry(forms.mapped(forms.text), default_factory=dict)
    farthest: Mapping[str, float] = entry(forms.mapped(forms.number), default_factory=dict)


@dataclass(frozen=True)
class ExportRecord:
    """What is known of a variant of an export.

    Args:
        form, variant: Which one.
        build: Digest of the model that it was made from.
        files: By name, within the variant's folder.
        tensors: How many it has, how many the model has.
        bits_per_weight: Bits of all tensors, divided by their elements.
        metadata: What was compared with the model's configuration, by key of the export.
        not_checked: What the model has and no check knows how to compare, with the reason.
        errors: Of the weights.
        tools: What made it, with versions or content.
        kept: Matrices that were not to be quantised, with the reason.
    """

    form: str = entry(forms.text)
    variant: str = entry(forms.text)
    build: str = entry(forms.sha256)
    files: Mapping[str, ExportFile] = entry(forms.mapped(forms.made_of(ExportFile)))
    tensors: Mapping[str, int] = entry(forms.mapped(forms.count))
    bits_per_weight: float = entry(forms.number)
    metadata: Mapping[str, str] = entry(forms.mapped(forms.text))
    not_checked: Mapping[str, str] = entry(forms.mapped(forms.text), default_factory=dict)
    errors: ExportErrors = entry(forms.made_of(ExportErrors))
    tools: Mapping[str, str] = entry(forms.mapped(forms.text), default_factory=dict)
    kept: Mapping[str, str] = entry(forms.mapped(forms.text), default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())


def load_export(path: str | os.PathLike[str]) -> ExportRecord:
    """Return the record of an export.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return forms.read(ExportRecord, load_json(path))
    except FormError as error:
        raise UserError(
            f"is not what a check of an export writes: {error}",
            str(path),
            "Delete it and run the workflow again, which makes it anew.",
        ) from None
