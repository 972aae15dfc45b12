"""Which of a shard's task vectors lie on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import ShardSpec, delta_name
from shardmerge.base.safetensors import read_header


@dataclass(frozen=True)
class StoredDelta:
    """Where a task vector lies.

    Args:
        path: The file.
        name: The tensor in it.
    """

    path: Path
    name: str


def stored_deltas(spec: ShardSpec, paths: Iterable[Path]) -> dict[ex.Delta, StoredDelta]:
    """Return the task vectors of a specification that files hold, and where.

    Args:
        spec: The shard's specification.
        paths: safetensors files whose tensors are named by ``spec.delta_name``.

    Raises:
        UserError: If a file cannot be read.
    """
    held = {name: Path(path) for path in paths for name in read_header(path).tensors}
    if not held:
        return {}
    deltas = dict.fromkeys(d for t in spec.tensors for d in ex.deltas(t.expression))
    names = {delta: delta_name(delta, spec.files) for delta in deltas}
    return {d: StoredDelta(held[name], name) for d, name in names.items() if name in held}
