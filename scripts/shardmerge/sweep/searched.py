"""How far a search is: the trials it has asked for, in a file that jobs and tables read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.forms import FormError, entry

#: Samplers that learn from what was measured.
SEARCHES = ("tpe", "cmaes", "nsga2")
#: How a trial of a search stands: not measured yet, and the ways in which it may end.
STATES = ("asked", "done", "stopped", "failed")

_any = forms.holds(lambda value: True)
_real = forms.holds(lambda value: type(value) is float)


@dataclass(frozen=True)
class Asked:
    """A trial of a search.

    Args:
        values: Of the variables.
        status: One of ``STATES``.
        questions: Questions of each task that it is measured by, or None for all.
    """

    values: Mapping[str, Any] = entry(forms.mapped(_any))
    status: str = entry(forms.one_of(lambda: STATES), "asked")
    questions: int | None = entry(forms.maybe(forms.count), None)


@dataclass(frozen=True)
class Searched:
    """A search so far.

    Args:
        generation: Number of the generation that is being measured, from 0.
        finished: Whether all trials have been measured.
        trials: All of them, in the order in which they were asked for.
        best: Place of the best one among them, or None.
        start: How many of the first trials the configuration gave.
        importances: For each objective, the share of each variable in what was measured.
    """

    generation: int = entry(forms.count)
    finished: bool = entry(forms.truth)
    trials: tuple[Asked, ...] = entry(forms.listed(forms.made_of(Asked)))
    best: int | None = entry(forms.maybe(forms.count), None)
    start: int = entry(forms.count, 0)
    importances: Mapping[str, Mapping[str, float]] = entry(forms.mapped(forms.mapped(_real)))

    @property
    def reported(self) -> list[int]:
        """Places of the trials that are measured on the other half of the questions."""
        if not self.finished or self.best is None:
            return []
        return list(dict.fromkeys([self.best, *range(self.start)]))


def state_path(results: str, name: str) -> Path:
    """Return the path of a search's state."""
    return Path(results, "sweeps", name, "search", "state.json")


def load_searched(path: Path) -> Searched:
    """Return how far a search is.

    Raises:
        UserError: If it has not begun, or its file is damaged.
    """
    if not path.is_file():
        hint = "Run `shardmerge search`, or `snakemake search`."
        raise UserError("the search has not begun", str(path), hint)
    try:
        return forms.read(Searched, load_json(path))
    except FormError as error:
        hint = "Run `shardmerge search`, which writes it anew."
        raise UserError(f"is damaged: {error}", str(path), hint) from None
