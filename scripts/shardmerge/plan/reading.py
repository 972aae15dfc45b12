"""Which task vectors are worth a file, by the bytes that jobs then read and write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import bytes_read, file_leaves
from shardmerge.algebra.spec import OutputTensor


def worth_storing(
    candidates: Sequence[ex.Delta], outputs: Iterable[OutputTensor]
) -> list[ex.Delta]:
    """Return the task vectors whose files save more bytes than it takes to make them.

    To make one takes reading both models and writing the difference. What that saves depends on
    what a tensor reads besides: ``base + w * (tuned - base)`` reads the base model in any case, so
    that a stored difference saves nothing. Task vectors of one tensor are decided on together:
    only where all of them are stored is their base not read.

    Args:
        candidates: Task vectors that more than one build reads.
        outputs: All output tensors.
    """
    users: dict[ex.Delta, list[OutputTensor]] = {delta: [] for delta in candidates}
    together: dict[ex.Delta, list[ex.Delta]] = {delta: [] for delta in candidates}
    for output in outputs:
        of_it = [d for d in dict.fromkeys(ex.deltas(output.expression)) if d in users]
        for delta in of_it:
            users[delta].append(output)
            together[delta] += of_it
    stored: set[ex.Delta] = set()
    seen: set[ex.Delta] = set()
    for delta in candidates:
        if delta not in seen:
            group = _reached(delta, together)
            seen |= group
            read = {id(o): o for d in group for o in users[d]}.values()
            if _cost(group, read) < _cost(frozenset(), read):
                stored |= group
    return [delta for delta in candidates if delta in stored]


def _reached(start: ex.Delta, links: dict[ex.Delta, list[ex.Delta]]) -> set[ex.Delta]:
    found, todo = {start}, [start]
    while todo:
        fresh = set(links[todo.pop()]) - found
        found |= fresh
        todo += fresh
    return found


def _cost(stored: Set[ex.Delta], outputs: Iterable[OutputTensor]) -> int:
    """Return bytes that are read and written to make task vectors and to read for outputs."""
    made = sum(bytes_read(d.finetuned) + bytes_read(d.base) + bytes_read(d) for d in stored)
    return made + sum(
        bytes_read(leaf) for output in outputs for leaf in file_leaves(output.expression, stored)
    )
