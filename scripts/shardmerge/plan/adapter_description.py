"""The description of a LoRA adapter: what people and its package are told, as the plan has it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.algebra.factorization import FactorModule, FactorRecord, FactorSpec, ModuleRecord
from shardmerge.base import forms
from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.forms import FormError, entry
from shardmerge.base.sealed import AGAIN
from shardmerge.plan.description import DescribedMade, DescribedSource, RecipeFile, StageText
from shardmerge.plan.files import description_path, load_spec_of

#: A module, and what became of its update.
MadeModule = tuple[FactorModule, ModuleRecord]


@dataclass(frozen=True)
class AdapterDescription:
    """What an adapter is made from and how.

    Args:
        name: The stage that it is of.
        recipe: Where it is from.
        stages: The documents that it needs, in their order.
        model: The model that it is extracted from, as the recipe names it.
        base: The model that it is an adapter of.
        sources: By reference: what the recipe is made of.
        decomposition, rank, energy, cut, alpha, seed, dtype, align: As in the recipe.
        turned: Whether the base's layers keep their matrices as [inputs, outputs].
        factors: Digests of the jobs that make factors.
        modules: Every module of the base that has tensors.
        saved: Ends of the names of modules that are saved whole.
        left: Tensors that differ from the base's and are not in the adapter.
        equal: Tensors that were asked for and are the base's.
        made: Sources that jobs made for it.
    """

    name: str = entry(forms.text)
    recipe: RecipeFile = entry(forms.made_of(RecipeFile))
    stages: tuple[StageText, ...] = entry(forms.listed(forms.made_of(StageText)))
    model: str = entry(forms.text)
    base: str = entry(forms.text)
    sources: Mapping[str, DescribedSource] = entry(forms.mapped(forms.made_of(DescribedSource)))
    decomposition: str = entry(forms.text)
    rank: int | None = entry(forms.maybe(forms.count))
    energy: float | None = entry(forms.maybe(forms.number))
    cut: float | None = entry(forms.maybe(forms.number))
    alpha: float | None = entry(forms.maybe(forms.number))
    seed: int = entry(forms.count)
    dtype: str = entry(forms.text)
    align: bool = entry(forms.truth, False)
    turned: bool = entry(forms.truth)
    factors: tuple[str, ...] = entry(forms.listed(forms.sha256))
    modules: tuple[str, ...] = entry(forms.listed(forms.text))
    saved: tuple[str, ...] = entry(forms.listed(forms.text))
    left: tuple[str, ...] = entry(forms.listed(forms.text))
    equal: tuple[str, ...] = entry(forms.listed(forms.text))
    made: tuple[DescribedMade, ...] = entry(forms.listed(forms.made_of(DescribedMade)), ())

    @property
    def digest(self) -> str:
        """Of all that the package is made from; names the description's file."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data; ``load_adapter`` reads it."""
        return forms.written(self)


def load_adapter(name: str) -> AdapterDescription:
    """Return the description of an adapter, which the plan made.

    Args:
        name: The adapter's digest.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = description_path(name)
    try:
        found = load_json(path)
        if digest(found) != name:
            raise FormError("its digest is another")
        return forms.read(AdapterDescription, found)
    except UserError as error:
        raise UserError(error.message, error.where, AGAIN) from None
    except (FormError, ValueError, RecursionError) as error:
        raise UserError(f"is damaged: {error}", str(path), AGAIN) from None


def load_factor_spec(name: str) -> FactorSpec:
    """Return the specification of a job that makes factors, of this process's plan.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    return load_spec_of(FactorSpec, name, "factors")


def load_factor_record(path: str | os.PathLike[str]) -> FactorRecord:
    """Return what a job that makes factors recorded.

    Raises:
        UserError: If the file is no such record.
    """
    try:
        return forms.read(FactorRecord, load_json(path))
    except FormError as error:
        hint = "Delete it and run the workflow again."
        raise UserError(f"is no record of factors: {error}", str(path), hint) from None


def made_modules(
    specs: Iterable[FactorSpec], records: Iterable[Iterable[ModuleRecord]]
) -> list[MadeModule]:
    """Return each module of a few specifications with what became of it."""
    return [
        pair
        for spec, told in zip(specs, records, strict=True)
        for pair in zip(spec.modules, told, strict=True)
    ]


def load_made_modules(
    description: AdapterDescription, records: Iterable[str | os.PathLike[str]]
) -> list[MadeModule]:
    """Return each module of an adapter with what became of it.

    Args:
        description: The adapter's.
        records: Files of its jobs' records, in the order of its specifications.

    Raises:
        UserError: If one of the files is not there or damaged.
    """
    specs = [load_factor_spec(digest) for digest in description.factors]
    return made_modules(specs, [load_factor_record(path).modules for path in records])
