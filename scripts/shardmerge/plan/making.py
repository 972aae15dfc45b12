"""Kinds of made sources: what the job of each needs, and what it does. The only list of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shardmerge.algebra.transplant import TransplantSpec
from shardmerge.base.dtypes import DTYPES, dtype_code, tensor_bytes
from shardmerge.base.forms import Written
from shardmerge.base.unfinished import Keeping, Unfinished
from shardmerge.benchmark.reading import GROUP_BYTES
from shardmerge.compose.made_sources import FileKey, MadeSource
from shardmerge.compose.measurements import MeasureSpec
from shardmerge.engine.memory import STREAMING_BYTES
from shardmerge.plan.files import load_spec_of
from shardmerge.plan.made_jobs import MadeJob
from shardmerge.plan.transplants import make_terms
from shardmerge.sources.lock import Lock

#: What any job takes that loads transformers: that and torch, blocks of text, logits.
_READING_BYTES = 2_000_000_000
#: Environments: of merges, which has torch and tokenizers, and of all that runs models.
MERGE, BENCHMARK = "merge", "benchmark"


@dataclass(frozen=True)
class MakeTask:
    """What a job is given to make a source with.

    Args:
        job: The job.
        spec: What it is told.
        output: The file that it writes.
        device: torch's name of where it computes.
        threads: Of torch.
        confirm: To be called before the file is put in place: nothing that is read has changed.
        progress: To be told how much of how much is done.
        keeping: How what is done so far is kept (``base.unfinished``), and what may take it over.
    """

    job: MadeJob
    spec: Any
    output: Path
    device: str = "cpu"
    threads: int = 1
    confirm: Callable[[], None] = lambda: None
    progress: Callable[[int, int], None] = lambda done, total: None
    keeping: Keeping = Keeping()


@dataclass(frozen=True)
class MadeKind:
    """A kind of made source.

    Args:
        folder: Below the results, where files of the kind lie.
        spec: What specifies one.
        memory: Returns the bytes that a job needs at most, from the source and the recipe's lock.
        make: Makes one; returns what is said of it in the log.
        environment: Name of the environment that jobs run in.
        reads: Returns the bytes that a job reads, likewise; by default those of its files.
        portable: Whether the bits depend on no processor, library or number of threads.
    """

    folder: str
    spec: type[Written]
    memory: Callable[[MadeSource, Lock], int]
    make: Callable[[MakeTask], str]
    environment: str = BENCHMARK
    reads: Callable[[MadeSource, Lock], int] | None = None
    portable: bool = False


def made_job(one: MadeSource, output: str, lock: Lock, path: Callable[[FileKey], str]) -> MadeJob:
    """Return the job that makes a source.

    Args:
        one: The source.
        output: Where it goes.
        lock: Of its recipe.
        path: Gives the path of a model's file.
    """
    kind = MADE_KINDS[one.kind]
    keys = [key for row in one.inputs for key in row]
    identities = [lock.sources[model].files[name].identity for model, name in keys]
    if one.text:
        identities.append(lock.texts[one.text].identity)
    return MadeJob(
        output=output,
        digest=one.digest,
        kind=one.kind,
        inputs=tuple(tuple(map(path, row)) for row in one.inputs),
        text=one.text,
        identities=tuple(identities),
        environment=kind.environment,
        memory=kind.memory(one, lock),
        bytes_read=(kind.reads or _all_files)(one, lock),
        bytes_written=sum(tensor_bytes(*row) for row in one.tensors.values()),
    )


def load_made_spec(job: MadeJob) -> Any:
    """Return what a job of this process's plan is told.

    Raises:
        UserError: If that is not there, or damaged.
    """
    return load_spec_of(MADE_KINDS[job.kind].spec, job.digest, f"a source of kind {job.kind!r}")


def _all_files(one: MadeSource, lock: Lock) -> int:
    """Return the bytes of all files that a job is given."""
    files = [lock.sources[model].files[name] for row in one.inputs for model, name in row]
    return sum(file.size for file in files) + (lock.texts[one.text].size if one.text else 0)


def _pair_bytes(one: MadeSource, lock: Lock) -> int:
    """Return the bytes of the tensors of two models that are subtracted."""
    tables = [lock.sources[row[0][0]].tensors for row in one.inputs]
    pairs = ((n, n) if isinstance(n, str) else n for n in one.spec.options["tensors"])
    found = [t[n] for pair in pairs for t, n in zip(tables, pair, strict=True)]
    return sum(tensor.end - tensor.begin for tensor in found)


def _table_bytes(one: MadeSource, lock: Lock) -> int:
    """Return the bytes of the embeddings that rows are found by, or of a tokenizer's files."""
    spec = one.spec
    if spec.donor is None:
        return _all_files(one, lock)
    tables = [spec.donor, *(table for model in spec.trained for table in model.tables)]
    tables += [spec.table] if spec.table else []
    return sum(tensor_bytes(table.dtype, table.shape) for table in tables)


def _hidden_memory(one: MadeSource, lock: Lock) -> int:
    return 3 * _stored(one, lock) + _READING_BYTES


def _text_memory(one: MadeSource, lock: Lock) -> int:
    """Return the bytes of a model, as stored and as computed with, and of a group of sums twice."""
    options = one.spec.options
    elements = sum(math.prod(t.shape) for t in lock.sources[one.models[0]].tensors.values())
    weights = elements * DTYPES[dtype_code(options["model_dtype"])].size
    sums = [4 * math.prod(shape) for _, shape in one.tensors.values()]
    group = min(sum(sums), max(GROUP_BYTES, *sums)) if sums else 0
    return weights + _stored(one, lock) + 2 * group + _READING_BYTES


def _stored(one: MadeSource, lock: Lock) -> int:
    return sum(t.end - t.begin for t in lock.sources[one.models[0]].tensors.values())


def _read_prompts(task: MakeTask) -> str:
    from shardmerge.benchmark.hidden import read_prompts

    options = task.spec.options
    read_prompts(
        Path(task.job.folders[0]),
        options["prompts"],
        options["mode"],
        task.output,
        device=task.device,
        threads=task.threads,
        **_usual(task),
    )
    return _told(task)


def _measure_text(task: MakeTask) -> str:
    from shardmerge.benchmark.text_measures import measure_text

    measure_text(
        task.job.kind,
        Path(task.job.folders[0]),
        Path(task.job.text),
        task.spec.options,
        task.output,
        device=task.device,
        threads=task.threads,
        **_usual(task),
    )
    return _told(task)


def _measure_norm(task: MakeTask) -> str:
    from shardmerge.engine.norms import measure_norm

    weights = ([Path(f) for f in files if _has_tensors(f)] for files in task.job.inputs)
    measure_norm(
        task.spec.options["tensors"],
        *weights,
        task.output,
        **_usual(task),
    )
    return _told(task)


def _usual(task: MakeTask) -> dict[str, Any]:
    """Return the arguments that all that measures takes."""
    return {"confirm": task.confirm, "progress": task.progress, "keeping": task.keeping}


def _has_tensors(file: str) -> bool:
    return file.endswith(".safetensors")


def _told(task: MakeTask) -> str:
    return f"{task.job.kind} of {', '.join(task.job.folders)}: done"


def _find_rows(task: MakeTask) -> str:
    from shardmerge.engine.transplant import terms_file

    files = [Path(file) for file in task.job.files]
    how = {"device": task.device, "progress": task.progress}
    with Unfinished(task.output, task.keeping, task.confirm) as work:
        terms = make_terms(task.spec, files, threads=task.threads, work=work, **how)
        work.write(terms_file(terms))
    return terms.told


_measured = partial(MadeKind, "measured", MeasureSpec)
#: By name, which stands before the digest in the identity of what is made.
MADE_KINDS = {
    "hidden": _measured(_hidden_memory, _read_prompts),
    "grams": _measured(_text_memory, _measure_text),
    "fisher": _measured(_text_memory, _measure_text),
    "norms": _measured(
        lambda one, lock: STREAMING_BYTES, _measure_norm, MERGE, _pair_bytes, portable=True
    ),
    "transplant": MadeKind(
        "transplants",
        TransplantSpec,
        lambda one, lock: STREAMING_BYTES + one.spec.memory,
        _find_rows,
        MERGE,
        _table_bytes,
    ),
}
