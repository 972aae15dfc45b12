"""What jobs found of a model, as its summary tells it: read from their files and checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.forms import entry
from shardmerge.benchmark.comparison_rows import Scores
from shardmerge.export.record import ExportRecord
from shardmerge.plan.records import VerifyRecord
from shardmerge.report.interference import Interference

_T = TypeVar("_T")
_tokens = forms.holds(lambda value: isinstance(value, str) or type(value) is int)


@dataclass(frozen=True)
class Loaded:
    """What ``load_model`` found: ``loaded`` is ``weights`` or only the ``architecture``."""

    loaded: str = entry(forms.text)
    architecture: str = entry(forms.text)
    parameters: int = entry(forms.count)
    unused: tuple[str, ...] = entry(forms.listed(forms.text))
    tokenizer: int | str = entry(_tokens)
    generated: tuple[int, ...] | None = entry(forms.maybe(forms.listed(forms.integer)), None)
    finite: bool = entry(forms.truth, True)
    prompt: str | None = entry(forms.maybe(forms.text), None)
    text: str | None = entry(forms.maybe(forms.text), None)


@dataclass(frozen=True)
class Findings:
    """All of it; None is what no job has found yet.

    Args:
        verified: Of the check of the whole model.
        loaded: Of transformers.
        scores: Of lm-eval.
        statistics: Of the checks of shards.
        exports: Of the checks of its exports.
    """

    verified: VerifyRecord | None = None
    loaded: Loaded | None = None
    scores: Scores | None = None
    statistics: Interference | None = None
    exports: tuple[ExportRecord, ...] = ()


def read_findings(
    build: str,
    verified: str | os.PathLike[str] | None,
    loaded: str | os.PathLike[str] | None,
    scores: str | os.PathLike[str] | None,
    statistics: str | os.PathLike[str] | None = None,
    exports: Iterable[str | os.PathLike[str]] = (),
) -> Findings:
    """Return what is known of a model.

    Args:
        build: The build's digest; what was verified of another build does not count.
        verified: ``verify.json``, or None; each of these may be absent.
        loaded: ``loaded.json``.
        scores: ``table.json``.
        statistics: ``interference.json``.
        exports: Records of exports; those of another build do not count.

    Raises:
        UserError: If a file that is there is damaged.
    """
    found = _read(VerifyRecord, verified)
    if found and found.build != build:
        found = None
    measured = _read(Interference, statistics)
    made = [record for path in exports if (record := _read(ExportRecord, path))]
    own = tuple(record for record in made if record.build == build)
    return Findings(found, _read(Loaded, loaded), _read(Scores, scores), measured, own)


def read_scores(path: str | os.PathLike[str]) -> Scores:
    """Return a benchmark table.

    Raises:
        UserError: If it is damaged, or not there.
    """
    found = _read(Scores, path)
    if found is None:
        raise UserError("is not there", str(path))
    return found


def _read(cls: type[_T], path: str | os.PathLike[str] | None) -> _T | None:
    if not path or not os.path.lexists(path):
        return None
    return forms.read_file(cls, path)
