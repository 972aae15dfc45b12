"""Recipe checks of merges of checkpoints: tensors that not all of them have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardmerge.base.findings import Finding
from shardmerge.base.text import plural
from shardmerge.compose.parts import Part
from shardmerge.plan.checked_build import Case
from shardmerge.recipe.references import Reference

#: Tensors that a message names.
_NAMED = 3


def partial_tensors(case: Case) -> Iterator[Finding]:
    """Find tensors that a merge of checkpoints takes from some of them, or leaves out."""
    model = case.composer.model(Reference(case.name))
    parts = {name: part for name, part in model.parts.items() if None in part.names}
    groups: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for name, part in parts.items():
        groups.setdefault((_having(part), part.copied), []).append(name)
    for (having, copied), tensors in groups.items():
        how = "taken as they are from" if copied else "merged from"
        yield case.finding("missing-tensor", f"{_told(tensors)} not in all checkpoints, and {how} "
                           f"{', '.join(having)}")  # fmt: skip
    for reference in dict.fromkeys(case.stage.references):
        lost = [name for name in case.composer.model(reference).table if name not in model.table]
        if lost:
            yield case.finding("missing-tensor", f"{_told(lost)} in {reference}, but not in the "
                               "result")  # fmt: skip


def left_out_weights(case: Case) -> Iterator[Finding]:
    """Find weights in the place of a checkpoint that are no part of it."""
    locked = case.composer.lock.sources
    keys = (reference.model for stage in case.stages for reference in stage.references)
    for key in dict.fromkeys(keys):
        if names := locked[key].left_out if key in locked else ():
            more = ", ..." if len(names) > _NAMED else ""
            yield case.finding(
                "left-out-weights",
                f"{plural(len(names), 'file')} of weights ({', '.join(names[:_NAMED])}{more}) in "
                f"{key} {'is' if len(names) == 1 else 'are'} no part of the checkpoint that is "
                "merged; name such a file by itself to merge it",
            )


def _having(part: Part) -> tuple[str, ...]:
    return tuple(model.name for model, _ in part.inputs)


def _told(tensors: Sequence[str]) -> str:
    """Return tensors as the beginning of a sentence about where they are."""
    names = ", ".join(map(repr, tensors[:_NAMED]))
    more = ", ..." if len(tensors) > _NAMED else ""
    return (
        f"{plural(len(tensors), 'tensor')} ({names}{more}) {'is' if len(tensors) == 1 else 'are'}"
    )
