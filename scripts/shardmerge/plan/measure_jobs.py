"""Jobs that measure whole models, from what recipes want measured: paths, and the memory needed."""

from __future__ import annotations

import math
from collections.abc import Callable

from shardmerge.base.dtypes import DTYPES, dtype_code
from shardmerge.benchmark.reading import GROUP_BYTES
from shardmerge.compose.measurements import ModelMeasurement
from shardmerge.plan.measuring import MeasureJob
from shardmerge.sources.lock import Lock, LockedSource

#: What any such job takes: torch and transformers, blocks of text, logits.
_OTHER = 2_000_000_000


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
