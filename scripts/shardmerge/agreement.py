"""Which tensors the models of a stage have in common; what keeps them from being merged."""

from __future__ import annotations

from shardmerge.errors import UserError
from shardmerge.models import Model
from shardmerge.names import is_derived, is_head
from shardmerge.stage import Stage


def common_tensors(reference: Model, inputs: list[Model], stage: Stage) -> list[str]:
    """Return the names of the output's tensors, in the reference model's order, after checks."""
    dropped = set()
    for model in inputs:
        for name in [*reference.table, *model.table]:
            if name in reference.table and name in model.table:
                continue
            if is_derived(name):
                dropped.add(name)
                continue
            has, lacks = (reference, model) if name in reference.table else (model, reference)
            hint = None
            if is_head(name):
                hint = (
                    f"The embeddings of {lacks.name!r} are tied (input and output share one "
                    f"tensor), those of {has.name!r} are not; such models cannot be merged."
                )
            raise UserError(
                f"tensor {name!r} is in {has.name!r} but not in {lacks.name!r}", stage.where, hint
            )
    names = [name for name in reference.table if name not in dropped]
    for model in inputs:
        for name in names:
            mine, its = reference.table[name].shape, model.table[name].shape
            if mine != its:
                raise UserError(
                    f"tensor {name!r} has shape {list(mine)} in {reference.name!r} but "
                    f"{list(its)} in {model.name!r}",
                    stage.where,
                    "Only models of one architecture and size can be merged.",
                )
    return names
