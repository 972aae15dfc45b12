"""A finished model's folder against what the plan, the jobs' records and their checks say of it.

The checks have read every shard whole; one that was touched since is hashed here again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmerge.base.digest import is_digest
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.hashing import sha256_streamed
from shardmerge.base.identities import stamp_of
from shardmerge.base.safetensors import read_header
from shardmerge.base.weightfolders import shard_name
from shardmerge.check.shard import check_hash
from shardmerge.package.index import load_records, make_index
from shardmerge.package.known import known_hashes, source_states
from shardmerge.package.superseded import remove_superseded, stray_weights
from shardmerge.plan.description import BuildDescription
from shardmerge.plan.paths import record_of_check
from shardmerge.plan.records import (
    CheckRecord,
    MergeRecord,
    VerifyRecord,
    load_check,
    load_record,
)

_AGAIN = "Delete the file and run the workflow again."


def verify_model(
    build: str,
    description: BuildDescription,
    folder: Path,
    checks: Iterable[Path],
    records: Iterable[Path],
    deltas: Iterable[Path] = (),
    hashes: Iterable[Path] = (),
    say: Callable[[str], None] = lambda line: None,
) -> VerifyRecord:
    """Check a model's files against its description and the jobs' records; return what was found.

    What an earlier plan of the model left in its folder is removed, once the shards are right.

    Args:
        build: The build's digest.
        description: Its description.
        folder: The model's.
        checks: What ``check_shard`` found, a JSON file for each shard.
        records: What the merge jobs recorded, a JSON file for each shard.
        deltas: What ``check_shard`` found of the stored task vectors that were read.
        hashes: What ``hash_source`` found of local files.
        say: Takes a line for each file that is removed.

    Raises:
        UserError: If anything is not as it must be.
    """
    folder = Path(folder)
    made = load_records(records)
    _check_shards(description, folder, made)
    rows = _check_checks(description, folder, checks, made)
    stored = [(load_check(path), load_record(record_of_check(path))) for path in deltas]
    for check, record in stored:
        _compare_hashes(check, record, f"task vectors {check.shard}")
    if not description.allow_nonfinite:
        _refuse_nonfinite(made)
        _refuse_nonfinite({check.shard: record for check, record in stored})
    vectors = [check for check, _ in stored]
    tables = [record.hashed for record in (*made.values(), *(r for _, r in stored))]
    known = known_hashes([*tables, *(_source_hash(path) for path in hashes)])
    remove_superseded(description, folder, say)
    _check_stray(description, folder)
    for index in description.indexes:
        _check_index(description, folder, index)
    _check_files(description, folder)
    return VerifyRecord(
        name=description.name,
        build=build,
        shards=len(description.shards),
        tensors=sum(len(shard.tensors) for shard in description.shards),
        bytes=sum(tensor_bytes(*t) for s in description.shards for t in s.tensors.values()),
        hashed=len(rows),
        task_vectors=len(vectors),
        task_vector_elements=sum(row.elements for row in vectors),
        sources=source_states(description, known),
        source_sha256=known,
        **_summed(rows),
    )


def _check_shards(
    description: BuildDescription, folder: Path, records: Mapping[str, MergeRecord]
) -> None:
    for shard in description.shards:
        path = folder / shard.file
        record = records.get(shard.file)
        if record is None:
            raise UserError("has no record of the job that made it", str(path))
        if record.spec not in (None, shard.digest):
            raise UserError("was made for another plan", str(path), _AGAIN)
        header = read_header(path)
        size = path.stat().st_size
        if size != record.size:
            raise UserError(f"has {size} bytes, but {record.size} were written", str(path), _AGAIN)
        wanted = shard.tensors
        found = {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()}
        for name in [*wanted, *found]:
            if wanted.get(name) != found.get(name):
                raise UserError(
                    f"tensor {name!r} is {_row(found.get(name))}, but must be "
                    f"{_row(wanted.get(name))}",
                    str(path),
                    _AGAIN,
                )


def _refuse_nonfinite(records: Mapping[str, MergeRecord]) -> None:
    """Refuse what was made while ``allow_nonfinite`` was true and is not what false lets pass."""
    for file, record in records.items():
        for tensor, count in sorted(record.nonfinite.items()):
            raise UserError(
                f"{count} merged values are infinite or NaN where no source is",
                f"{file}, tensor {tensor!r}",
                "They were made with `allow_nonfinite: true`. Write that again, or use another "
                "dtype or smaller weights.",
            )


def _check_index(description: BuildDescription, folder: Path, index: str) -> None:
    path = folder / index
    if not path.exists():
        raise UserError("is missing", str(path))
    wanted, found = make_index(description, index), load_json(path)
    metadata, places = (found.get(key) for key in ("metadata", "weight_map"))
    if not (isinstance(metadata, dict) and isinstance(places, dict)):
        raise UserError("is no index of weight files", str(path), _AGAIN)
    total, size = metadata.get("total_size"), wanted["metadata"]["total_size"]
    if total != size:
        raise UserError(
            f"has total_size {total}, but the tensors have {size} bytes",
            str(path),
            _AGAIN,
        )
    for name in [*wanted["weight_map"], *places]:
        if places.get(name) != wanted["weight_map"].get(name):
            raise UserError(
                f"puts tensor {name!r} in {places.get(name)!r}, but it is in "
                f"{wanted['weight_map'].get(name)!r}",
                str(path),
                _AGAIN,
            )


def _check_stray(description: BuildDescription, folder: Path) -> None:
    """Refuse weights that are not of the model: loaders take whatever matches a name."""
    for path in stray_weights(description, folder):
        raise UserError(
            "is not part of this model, and not as this workflow writes files",
            str(path),
            f"Move it elsewhere, or delete it: `rm {shlex.quote(str(path))}`",
        )


def _check_files(description: BuildDescription, folder: Path) -> None:
    for name in (*description.files, *description.tokens.made):
        if not (folder / name).is_file():
            raise UserError("is missing", str(folder / name))
    if description.checkpoint:
        return  # its configuration, if it has one, is as it was
    config = load_json(folder / "config.json")
    dtype = config.get("dtype", config.get("torch_dtype"))
    if description.dtype and dtype != description.dtype:
        raise UserError(
            f"has dtype {dtype!r}, but the model is in {description.dtype!r}",
            str(folder / "config.json"),
            _AGAIN,
        )


def _check_checks(
    description: BuildDescription,
    folder: Path,
    paths: Iterable[Path],
    records: Mapping[str, MergeRecord],
) -> list[CheckRecord]:
    """Return the shards' checks, one of each, each of the file that is there."""
    checks = {}
    for path in paths:
        checks[shard_name(path)] = load_check(path)
    rows = []
    for shard in description.shards:
        check = checks.get(shard.file)
        if check is None or check.spec != shard.digest:
            state = "was not checked" if check is None else "was checked for another plan"
            raise UserError(state, shard.file)
        path, record = folder / shard.file, records[shard.file]
        _compare_hashes(check, record, str(path))
        if not _is_untouched(check, path):
            check_hash(path, sha256_streamed(path), record.sha256)
        rows.append(check)
    return rows


def _compare_hashes(check: CheckRecord, record: MergeRecord, where: str) -> None:
    if check.sha256 != record.sha256:
        raise UserError(
            "was checked before it was made anew",
            where,
            "Delete the folder `checks` beside the records, and run the workflow again.",
        )


def _is_untouched(check: CheckRecord, shard: Path) -> bool:
    """Whether a shard has the stamp that it was checked with, but for its device's number."""
    return check.stamp[:-1] == stamp_of(shard)[:-1]


def _summed(rows: Sequence[CheckRecord]) -> dict[str, Any]:
    """Return what the checks of all shards come to, by the fields of ``Recomputed``."""
    counts = ("elements", "copies", "recomputed_independently", "recomputed_by_engine_steps")
    counts += ("verified_by_probes", "undecided", "nonfinite")
    return {
        "passed": True,
        **{key: sum(getattr(row, key) for row in rows) for key in counts},
        "largest_error_in_bounds": max((r.largest_error_in_bounds for r in rows), default=0.0),
        "not_sampled": tuple(name for row in rows for name in row.not_sampled),
    }


def _source_hash(path: Path) -> dict[str, str]:
    check = load_json(path)
    identity, sha256 = check.get("identity"), check.get("sha256")
    if check.get("passed") is not True or not (isinstance(identity, str) and is_digest(sha256)):
        raise UserError(
            "is not what a job found of a source",
            str(path),
            "Delete it and run the workflow again, which hashes the file anew.",
        )
    return {identity: sha256}


def _row(row: tuple[str, tuple[int, ...]] | None) -> str:
    return "missing" if row is None else f"{row[0]}{list(row[1])}"
