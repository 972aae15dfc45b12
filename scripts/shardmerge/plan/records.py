"""Records of jobs, read again: believed only if they have the form of one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, sha256_of
from shardmerge.base.forms import FormError, entry
from shardmerge.plan.paths import record_path

#: What a large file is known by: its sample, or its hash once a job has found that.
_IDENTITY = re.compile("(sample|sha256):[0-9a-f]{64}")


def _is_answer(value: Any) -> bool:
    """Whether a value is numbers as text, order statistics, or bands as six numbers each.

    Statistics and bands may be followed by text.
    """
    if type(value) is not list:
        return type(value) is str
    last = [one for one in value[-1:] if type(one) is str]
    return {type(one) for one in value[: len(value) - len(last)]} in (set(), {int}, {list})


#: What a pass found, None if nothing of it is kept.
_answer = forms.maybe(forms.holds(_is_answer))
_known = forms.holds(_IDENTITY.fullmatch)


@dataclass(frozen=True)
class MergeRecord:
    """What a merge job recorded: ``engine.record.ShardRecord``, and the job's digest.

    Args:
        sha256: Of the shard.
        xxh3: Of the shard and that SHA-256; None if the record does not tell.
        size: Bytes of the shard.
        spec: The job's digest; None if the record does not tell.
        bytes_read, bytes_written: That passed through the job.
        peak_memory: Bytes of the job's own, without the code of libraries.
        whole_copy: Whether the shard is a source file byte for byte.
        seconds: Busy time of each phase, and the wall time (total).
        nonfinite: Tensors with infinite or NaN elements where no source has one: how many.
        hashed: SHA-256 of source files that are known by a sample, by that.
        tensors: For a shard of task vectors, the XXH3 of each tensor.
        deltas: Of each tensor, rows of task vectors: models, sum of squares, the base's or None.
        passes: Of each tensor with methods in passes, what they found, call by call.
        probes: Of each tensor with calls that are too large to be recomputed, what was recorded of
            them: sampled elements, and numbers of each matrix.
    """

    sha256: str = entry(forms.sha256)
    size: int = entry(forms.count)
    xxh3: str | None = entry(forms.xxh3, None)
    spec: str | None = entry(forms.sha256, None)
    bytes_read: int = entry(forms.count, 0)
    bytes_written: int = entry(forms.count, 0)
    peak_memory: int = entry(forms.count, 0)
    whole_copy: bool = entry(forms.truth, False)
    seconds: Mapping[str, float] = entry(forms.mapped(forms.number), default_factory=dict)
    nonfinite: Mapping[str, int] = entry(forms.mapped(forms.count), default_factory=dict)
    hashed: Mapping[str, str] = entry(forms.mapped(forms.sha256, _known), default_factory=dict)
    tensors: Mapping[str, str] = entry(forms.mapped(forms.quick_or_sha256), default_factory=dict)
    deltas: Mapping[str, tuple[tuple[tuple[str, ...], float, float | None], ...]] = entry(
        forms.mapped(
            forms.listed(forms.row(forms.listed(forms.text), forms.real, forms.maybe(forms.real)))
        ),
        default_factory=dict,
    )
    passes: Mapping[str, tuple[tuple[Any, ...], ...]] = entry(
        forms.mapped(forms.listed(forms.listed(_answer))), default_factory=dict
    )
    probes: Mapping[str, tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]] = entry(
        forms.mapped(forms.listed(forms.row(forms.text, forms.listed(forms.listed(forms.text))))),
        default_factory=dict,
    )


@dataclass(frozen=True)
class Recomputed:
    """How much was compared with the sources, and by which way.

    Args:
        passed: Always true.
        elements: Compared.
        copies: Tensors that are a source's, bit by bit.
        recomputed_independently, recomputed_by_engine_steps: Other tensors, by the way they were
            recomputed.
        verified_by_probes: Tensors that are too large to be recomputed, and that have the
            properties that their methods' definitions give them.
        largest_error_in_bounds: In parts of what rounding allows.
        undecided: Elements that no bound could be told for.
        nonfinite: Elements that are infinite or NaN.
        not_sampled: Tensors that were not recomputed.
    """

    passed: bool = entry(forms.holds(lambda value: value is True))
    elements: int = entry(forms.count)
    copies: int = entry(forms.count)
    recomputed_independently: int = entry(forms.count)
    recomputed_by_engine_steps: int = entry(forms.count)
    verified_by_probes: int = entry(forms.count, 0)
    largest_error_in_bounds: float = entry(forms.number)
    undecided: int = entry(forms.count)
    nonfinite: int = entry(forms.count)
    not_sampled: tuple[str, ...] = entry(forms.listed(forms.text))


@dataclass(frozen=True)
class CheckRecord(Recomputed):
    """What the check of a shard found: ``check.shard.check_shard``.

    Args:
        shard: Name of the file.
        spec: The job's digest.
        sha256: Of the shard.
        stamp: Of the shard when it was checked: ``base.identities.Stamp``.
    """

    shard: str = entry(forms.text)
    spec: str = entry(forms.sha256)
    sha256: str = entry(forms.sha256)
    stamp: tuple[int, ...] = entry(forms.listed(forms.integer))


@dataclass(frozen=True)
class VerifyRecord(Recomputed):
    """What the verification of a model found, ``verify.json``: the sums over its shards' checks.

    Args:
        name: Of the build.
        build: Its digest.
        shards, tensors: How many the model has.
        bytes: Of its tensors.
        hashed: Shards whose bytes are all as they were written.
        task_vectors, task_vector_elements: Stored ones that were read, and what was compared of
            them.
        sources: How many source files are known by all their bytes (``hashed``) and by a sample
            (``sampled``).
        source_sha256: Of large source files that jobs hashed, by what locks know them by.
    """

    name: str = entry(forms.text)
    build: str = entry(forms.text)
    shards: int = entry(forms.count)
    tensors: int = entry(forms.count)
    bytes: int = entry(forms.count)
    hashed: int = entry(forms.count)
    task_vectors: int = entry(forms.count)
    task_vector_elements: int = entry(forms.count)
    sources: Mapping[str, int] = entry(forms.mapped(forms.count))
    source_sha256: Mapping[str, str] = entry(forms.mapped(forms.sha256, _known))


def load_record(path: str | os.PathLike[str]) -> MergeRecord:
    """Return the record of a merge job.

    Raises:
        UserError: If it cannot be read or is none.
    """
    hint = f"Delete {str(path)!r} and run the workflow again: its shard is then made anew."
    return _load(MergeRecord, path, "is not the record of a merge job", hint)


def load_check(path: str | os.PathLike[str]) -> CheckRecord:
    """Return the record of a check that passed.

    Raises:
        UserError: If it cannot be read or is none.
    """
    hint = "Delete it and run the workflow again, which checks anew."
    return _load(CheckRecord, path, "is not the record of a check that passed", hint)


def load_verified(path: str | os.PathLike[str]) -> VerifyRecord:
    """Return the record of a model that passed verification.

    Raises:
        UserError: If it cannot be read or is none.
    """
    hint = "Delete it and run the workflow again, which verifies the model anew."
    return _load(VerifyRecord, path, "does not say that the model passed verification", hint)


def _load(cls: type[Any], path: str | os.PathLike[str], what: str, hint: str) -> Any:
    try:
        return forms.read(cls, load_json(path))
    except UserError as error:
        raise UserError(error.message, error.where, hint) from None
    except FormError as error:
        raise UserError(f"{what}: {error}", str(path), hint) from None


def is_as_recorded(path: Path, record: Path) -> bool:
    """Return whether a file is byte for byte what the job wrote that left a record."""
    if path.is_symlink() or not record.is_file():
        return False
    try:
        told = load_record(record)
    except UserError:
        return False
    before = os.stat(path)
    if told.size != before.st_size or told.sha256 != sha256_of(path):
        return False
    after = os.stat(path)
    return (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def recorded_tensors(shard: Path) -> Mapping[str, str]:
    """Return the XXH3 of each tensor of a shard of task vectors, as its record has it.

    Raises:
        UserError: If the record cannot be read, or is of another kind of shard.
    """
    record = load_record(record_path(shard))
    if not record.tensors:
        raise UserError(
            "does not tell the hashes of its task vectors",
            record_path(shard),
            f"Delete {str(shard)!r} and run the workflow again, which makes both anew.",
        )
    return record.tensors
