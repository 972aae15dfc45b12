"""Whether a merged model's output embedding can still be its input embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra.json import to_json
from shardmerge.compose.architecture.names import is_embedding, is_head, is_vocabulary
from shardmerge.compose.models import Model
from shardmerge.methods import registry


def head_differs(model: Model, tied: Collection[str]) -> bool:
    """Whether a model stores an output embedding that is made otherwise than its input embedding.

    Files of tied models may hold both. They are equal there, and stay so where a merge does the
    same with both of them.

    Args:
        model: A stage's.
        tied: Sources whose config says that the two are one.
    """
    heads = [tensor for tensor in model.table if is_head(tensor)]
    embeddings = [tensor for tensor in model.table if is_embedding(tensor)]
    if len(heads) != 1 or len(embeddings) != 1:
        return False

    def leaf(source: ex.Source) -> list[Any]:
        either = source.model in tied and is_vocabulary(source.tensor)
        return [source.model, either or source.tensor]

    head, embedding = (to_json(_unnamed(model.expression(t)), leaf) for t in (*heads, *embeddings))
    return head != embedding


def _unnamed(expression: ex.Expression) -> ex.Expression:
    """Return an expression whose deterministic calls do not say which tensor they make."""
    match expression:
        case ex.Call(method=method, inputs=inputs):
            tensor = "" if registry.method(method).deterministic else expression.tensor
            inputs = tuple(map(_unnamed, inputs))
            return dataclasses.replace(expression, inputs=inputs, tensor=tensor)
        case ex.Cast(operand):
            return dataclasses.replace(expression, operand=_unnamed(operand))
        case ex.Linear(terms):
            return ex.Linear(tuple((c, _unnamed(operand)) for c, operand in terms))
    return expression
