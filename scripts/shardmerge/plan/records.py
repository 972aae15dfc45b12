"""Records of merge jobs, read again: what they say is believed only if it has the form of one."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.plan.paths import record_path

_SHA256 = re.compile("[0-9a-f]{64}")
_IDENTITY = re.compile("sample:[0-9a-f]{64}")


def load_record(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return the record of a merge job.

    Raises:
        UserError: If it cannot be read or is none.
    """
    hint = f"Delete {str(path)!r} and run the workflow again: its shard is then made anew."
    try:
        record = load_json(path)
    except UserError as error:
        raise UserError(error.message, error.where, hint) from None
    for key, (needed, is_right) in _FIELDS.items():
        if needed if key not in record else not is_right(record[key]):
            what = "lacks" if key not in record else "has no right"
            raise UserError(f"is not the record of a merge job: it {what} {key!r}", str(path), hint)
    return record


def recorded_tensors(shard: Path) -> Mapping[str, str]:
    """Return the SHA-256 of each tensor of a shard of task vectors, as its record has it.

    Raises:
        UserError: If the record cannot be read, or is of another kind of shard.
    """
    record = load_record(record_path(shard))
    if not record.get("tensors"):
        raise UserError(
            "does not tell the SHA-256 of its task vectors",
            record_path(shard),
            f"Delete {str(shard)!r} and run the workflow again, which makes both anew.",
        )
    return record["tensors"]


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _maps(is_value: Callable[[object], bool], is_key: Callable[[str], object] = bool) -> Any:
    return lambda table: (
        isinstance(table, dict)
        and all(is_key(key) for key in table)
        and all(is_value(value) for value in table.values())
    )


def _is_norm(row: object) -> bool:
    if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], list)):
        return False
    own, base = row[1:]
    named = all(isinstance(model, str) for model in row[0])
    return named and type(own) in (int, float) and (base is None or type(base) in (int, float))


#: For each key, whether a record must have it, and what its value must be.
_FIELDS: dict[str, tuple[bool, Callable[[Any], bool]]] = {
    "sha256": (True, _is_sha256),
    "size": (True, _is_count),
    "spec": (False, _is_sha256),
    "bytes_read": (False, _is_count),
    "bytes_written": (False, _is_count),
    "peak_memory": (False, _is_count),
    "whole_copy": (False, lambda value: type(value) is bool),
    "seconds": (False, _maps(_is_number)),
    "nonfinite": (False, _maps(_is_count)),
    "hashed": (False, _maps(_is_sha256, _IDENTITY.fullmatch)),
    "tensors": (False, _maps(_is_sha256)),
    "deltas": (False, _maps(lambda rows: isinstance(rows, list) and all(map(_is_norm, rows)))),
}
