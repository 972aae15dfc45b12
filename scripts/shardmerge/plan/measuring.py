"""Jobs that measure whole models before anything is merged: what they read, make and need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.base import forms
from shardmerge.base.dtypes import DTYPES, dtype_code
from shardmerge.base.errors import UserError
from shardmerge.base.forms import FormError, entry
from shardmerge.base.sealed import AGAIN
from shardmerge.benchmark.reading import GROUP_BYTES
from shardmerge.compose.measurements import VERSIONS, ModelMeasurement
from shardmerge.plan.files import load_spec_json
from shardmerge.sources.lock import Lock, LockedSource

#: What any such job takes: torch and transformers, blocks of text, logits.
_OTHER = 2_000_000_000


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
class MeasureSpec:
    """What such a job does.

    Args:
        kind: As of ``ModelMeasurement``.
        options: Likewise.
    """

    kind: str = entry(forms.one_of(lambda: VERSIONS))
    options: Mapping[str, Any] = entry(forms.table)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data; ``load_measure_spec`` reads it."""
        return {"kind": self.kind, "options": dict(self.options)}


def measure_job(
    one: ModelMeasurement, output: str, lock: Lock, path: Callable[[tuple[str, str]], str]
) -> MeasureJob:
    """Return the job of a measurement.

    Args:
        one: It.
        output: Where its result goes.
        lock: Of its recipe.
        path: Gives the path of a model's file.
    """
    sources = [lock.sources[model] for model in one.models]
    identities = [file.identity for source in sources for file in source.files.values()]
    if one.text:
        identities.append(lock.texts[one.text].identity)
    return MeasureJob(
        output=output,
        digest=one.digest,
        kind=one.kind,
        models=tuple(
            tuple(path((model, name)) for name in source.files)
            for model, source in zip(one.models, sources, strict=True)
        ),
        text=one.text,
        identities=tuple(identities),
        memory=_memory(one, sources[0]),
    )


def load_measure_spec(name: str) -> MeasureSpec:
    """Return the specification of a job of this process's plan; as ``files.load_spec``.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    try:
        return forms.read(MeasureSpec, load_spec_json(name))
    except FormError as error:
        raise UserError(f"is no specification of a measurement: {error}", name, AGAIN) from None


def _memory(one: ModelMeasurement, model: LockedSource) -> int:
    """Return the bytes that a job needs at most."""
    stored = sum(t.end - t.begin for t in model.tensors.values())
    if one.kind == "hidden":
        return 3 * stored + _OTHER
    if one.kind == "norms":
        return _OTHER
    elements = sum(math.prod(t.shape) for t in model.tensors.values())
    weights = elements * DTYPES[dtype_code(one.options["model_dtype"])].size
    shapes = [shape for _, shape in one.options["tensors"]]
    sums = [4 * (s[1] ** 2 if one.kind == "grams" else math.prod(s)) for s in shapes]
    group = min(sum(sums), max(GROUP_BYTES, *sums)) if sums else 0
    # as they are loaded, both as stored and as computed with; sums of a group, as they are written
    return weights + stored + 2 * group + _OTHER
