"""Statistics that the check of a shard noted, read again: believed only if they have the form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.forms import FormError, entry
from shardmerge.base.weightfolders import folder_below, in_folder


@dataclass(frozen=True)
class TensorStatistics:
    """Sums over the sampled elements of one tensor; labels are given by their numbers.

    Args:
        elements: Of the tensor.
        sampled: Elements that the sums are over.
        kept: Of task vectors under a sparse method: label, elements that have a part in the
            result, elements that are not 0.
        pairs: Of two task vectors: both labels, dot product, squared norm of each, elements whose
            signs agree, elements that are 0 in neither, standard error of the cosine.
        parents: Of models: label, squared distance, the model's squared norm, standard error of
            the relative distance.
    """

    elements: int = entry(forms.count)
    sampled: int = entry(forms.count)
    kept: tuple[tuple[int, int, int], ...] = entry(
        forms.listed(forms.row(forms.count, forms.count, forms.count))
    )
    pairs: tuple[tuple[int, int, float, float, float, int, int, float], ...] = entry(
        forms.listed(
            forms.row(*[forms.count] * 2, *[forms.number] * 3, *[forms.count] * 2, forms.number)
        )
    )
    parents: tuple[tuple[int, float, float, float], ...] = entry(
        forms.listed(forms.row(forms.count, *[forms.number] * 3))
    )

    @property
    def labels(self) -> set[int]:
        """The numbers of all labels that it names."""
        pairs = {label for row in self.pairs for label in row[:2]}
        return pairs | {row[0] for row in (*self.kept, *self.parents)}

    @property
    def factor(self) -> float:
        """What a sum over the sample is multiplied by for the whole tensor."""
        return self.elements / self.sampled


@dataclass(frozen=True)
class ShardStatistics:
    """Of all tensors of a shard; labels are models, and differences of models."""

    labels: tuple[str, ...] = entry(forms.listed(forms.text))
    tensors: Mapping[str, TensorStatistics] = entry(forms.mapped(forms.made_of(TensorStatistics)))

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if any(label >= len(self.labels) for label in tensor.labels):
                raise FormError(f"there is no such label as one of {name!r}")
            if not 0 < tensor.sampled <= tensor.elements:
                raise FormError(f"the sample of {name!r} is none")


@dataclass(frozen=True)
class _Check:
    statistics: ShardStatistics | None = entry(forms.maybe(forms.made_of(ShardStatistics)), None)


def load_statistics(path: str | os.PathLike[str]) -> ShardStatistics | None:
    """Return the statistics in the record of a check, or None if it has none.

    Tensors are called as among all of the model.

    Raises:
        UserError: If it cannot be read or is damaged.
    """
    try:
        found = forms.read(_Check, load_json(path)).statistics
    except FormError as error:
        raise UserError(
            f"is not the record of a check that passed: {error}",
            str(path),
            "Delete it and run the workflow again, which checks anew.",
        ) from None
    folder = folder_below(Path(path))
    if found is None or not folder:
        return found
    named = {in_folder(folder, name): tensor for name, tensor in found.tensors.items()}
    return replace(found, tensors=named)
