"""Adapters of experts that libraries put together: of a layer's experts, all have factors or none.

peft stacks the factors of experts that transformers keeps in one tensor. If one expert lacks them,
the adapter cannot be loaded. So an expert that is the base's gets an update of zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from shardmerge.algebra import expression as ex
from shardmerge.algebra.factorization import FactorModule
from shardmerge.algebra.spec import OutputTensor

#: A module that is adapted, and the tensors that its update is read as.
Adapted = tuple[FactorModule, tuple[OutputTensor, ...]]
_EXPERT = re.compile(r"((?:.*\.)?experts)\.\d+\.(\w+)")
#: Projections that lie in one tensor with another one.
_WITH = {"w3": "w1", "up_proj": "gate_proj"}


def missing_experts(
    modules: Iterable[Adapted], candidates: Iterable[tuple[str, str]]
) -> list[Adapted]:
    """Return updates of zeros for experts whose factors are stacked with those of adapted ones.

    Args:
        modules: Those that are adapted.
        candidates: Tensor and module of all of the base's that could be.
    """
    alike: dict[tuple[str, str], Adapted] = {}
    names = set()
    for module, tensors in modules:
        names.add(module.name)
        if (stack := _stack(module.name)) is not None:
            alike.setdefault(stack, (module, tensors))
    return [
        _zeros(tensor, name, *alike[stack])
        for tensor, name in candidates
        if name not in names and (stack := _stack(name)) in alike
    ]


def _stack(name: str) -> tuple[str, str] | None:
    """Return which modules' factors are stacked with a module's."""
    found = _EXPERT.fullmatch(name)
    return (found[1], _WITH.get(found[2], found[2])) if found else None


def _zeros(
    tensor: str, name: str, like: FactorModule, tensors: tuple[OutputTensor, ...]
) -> Adapted:
    """Return a module with an update of zeros, given as another one's is."""
    made = replace(like, name=name, tensor=tensor, merge=None)
    own = [n for i in range(made.products) for n in made.factor_names(i)] or [tensor]
    return made, tuple(
        OutputTensor(called, one.dtype, one.shape, ex.Zero(one.shape))
        for called, one in zip(own, tensors, strict=True)
    )
