"""What merging a shard and checking it have in common: its specification and its files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.algebra.expression import Delta
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.engine.stored import StoredDelta, stored_deltas
from shardmerge.engine.tasks import TensorTask, make_tasks, needs_torch
from shardmerge.plan.files import load_spec
from shardmerge.run.worker import TORCH, delegate


@dataclass(frozen=True)
class ShardInputs:
    """A shard as a job is told of it.

    Args:
        spec: What it is.
        deltas: Files of stored task vectors that are read.
        stored: Where each of the task vectors lies in them.
        sources: Files of the sources, by model and name.
        tasks: What is done for each of its tensors, or for those that the job asks for.
    """

    spec: ShardSpec
    deltas: Sequence[Path]
    stored: Mapping[Delta, StoredDelta]
    sources: Mapping[tuple[str, str], Path]
    tasks: Sequence[TensorTask]


def shard_inputs(
    digest: str,
    sources: Sequence[Path],
    deltas: Sequence[Path],
    *,
    uses_torch: Callable[[Sequence[TensorTask]], bool] = needs_torch,
    make: Callable[[ShardSpec, Collection[Delta]], Sequence[TensorTask]] = make_tasks,
) -> ShardInputs:
    """Return a shard's inputs; a job that computes with torch goes on in the process that has it.

    Args:
        digest: Of the specification.
        sources: Files of the sources, in the specification's order.
        deltas: Files of stored task vectors.
        uses_torch: Whether the job imports torch for tasks. What is forked from the process that
            has it may use a card, as long as that process itself has not.
        make: Makes the tasks; a job that only asks whether they use torch makes one of each kind.

    Raises:
        UserError: If there is no such specification, or it needs other files.
    """
    spec = load_spec(digest)
    stored = stored_deltas(spec, deltas)
    tasks = make(spec, stored)
    if uses_torch(tasks):
        delegate(TORCH)
    files = spec.required_files(stored)
    if len(files) != len(sources):
        raise UserError(f"needs {len(files)} files, {len(sources)} are given", "--sources")
    return ShardInputs(spec, deltas, stored, dict(zip(files, sources, strict=True)), tasks)
