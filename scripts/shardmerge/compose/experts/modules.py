"""Where a mixture has its experts: the modules that hold them, told by names of tensors alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shardmerge.base.errors import UserError
from shardmerge.compose.models import Model

#: An expert's tensor: what comes before it, its number and the rest.
EXPERT = re.compile(r"(.*\.)experts\.(0|[1-9][0-9]{0,3})\.(.+)")
#: A tensor of all experts of a layer: what comes before it and the rest.
STACKED = re.compile(r"(.*\.)experts\.([^.]+(?:\.[^.]+)?)")
#: What has a row for each expert, in a module that holds experts.
_ROUTER = re.compile(r"(?:gate|router)(?:\.|$)")
_SHARED = re.compile(r"shared_experts?(?:_gate)?\.")


@dataclass
class ExpertModule:
    """The tensors of a layer's module that holds experts.

    Args:
        numbers: Of the experts that have tensors of their own.
        stacked: What all experts share.
        routers: What has a row for each expert.
        shared: What belongs to shared experts.
    """

    numbers: set[int] = field(default_factory=set)
    stacked: list[str] = field(default_factory=list)
    routers: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)


def expert_modules(model: Model, where: str) -> dict[str, ExpertModule]:
    """Return the modules that hold experts, by the beginning of their tensors' names.

    Args:
        model: The mixture.
        where: What to say in errors.

    Raises:
        UserError: If there is none.
    """
    modules: dict[str, ExpertModule] = {}
    for name in model.table:
        if match := EXPERT.fullmatch(name):
            modules.setdefault(match[1], ExpertModule()).numbers.add(int(match[2]))
        elif match := STACKED.fullmatch(name):
            modules.setdefault(match[1], ExpertModule()).stacked.append(name)
    for name in model.table:
        for prefix, rest in _prefixes(name):
            if prefix in modules and _ROUTER.match(rest):
                modules[prefix].routers.append(name)
            elif prefix in modules and _SHARED.match(rest):
                modules[prefix].shared.append(name)
    if not modules:
        message = f"model {model.name!r} has no experts that are known by their names"
        raise UserError(message, where)
    return modules


def expert_count(model: Model, modules: Mapping[str, ExpertModule], where: str) -> int:
    """Return how many experts each module has.

    Args:
        model: The mixture.
        modules: Its modules.
        where: What to say in errors.

    Raises:
        UserError: If they do not all have the same number.
    """
    counts: set[int | None] = set()
    for module in modules.values():
        if numbers := module.numbers:
            counts.add(len(numbers) if numbers == set(range(len(numbers))) else None)
        rows = (model.table[name].shape for name in (*module.stacked, *module.routers))
        counts.update(shape[0] if shape else None for shape in rows)
    found = next(iter(counts))
    if len(counts) != 1 or found is None:
        raise UserError(
            f"the layers of {model.name!r} do not all have the same number of experts, or hold "
            "them in another way than is known here",
            where,
        )
    return found


def _prefixes(name: str) -> Iterator[tuple[str, str]]:
    """Yield every beginning of a name up to a dot, with the rest."""
    place = name.find(".")
    while place >= 0:
        yield name[: place + 1], name[place + 1 :]
        place = name.find(".", place + 1)
