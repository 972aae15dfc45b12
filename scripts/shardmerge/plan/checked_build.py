"""A model that is to be built, as recipe checks see it, and how they name its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from shardmerge.algebra import expression as ex
from shardmerge.algebra.coefficients import Blend, blend_of
from shardmerge.algebra.patterns import alike
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.findings import Finding
from shardmerge.base.text import ranges
from shardmerge.compose.architecture.names import layer_of, module_of
from shardmerge.compose.composer import Composer
from shardmerge.recipe.stage import Stage
from shardmerge.sources.lock import LockedSource

#: Modules that a message names.
_NAMED = 6


@dataclass(frozen=True)
class Case:
    """A model to be built, as the checks see it.

    Args:
        composer: Of its recipe.
        name: The stage.
        outputs: Its tensors.
        expressions: What each of them is, as sums (``Composer.sums``).
    """

    composer: Composer
    name: str
    outputs: Sequence[OutputTensor]
    expressions: Mapping[str, ex.Expression]

    @cached_property
    def blends(self) -> Mapping[str, Blend]:
        """What is blended in each tensor."""
        return {name: alike(expression, blend_of) for name, expression in self.expressions.items()}

    @cached_property
    def kinds(self) -> list[tuple[Blend, list[str]]]:
        """The tensors by what is blended in them: one kind for all whose patterns are equal."""
        found: dict[int, tuple[Blend, list[str]]] = {}
        for name, blend in self.blends.items():
            if id(blend) not in found:
                found[id(blend)] = blend, []
            found[id(blend)][1].append(name)
        return list(found.values())

    @property
    def stage(self) -> Stage:
        """The document that it is built from."""
        return self.composer.recipe.stages[self.name]

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages that go into it, itself the last."""
        recipe = self.composer.recipe
        return [recipe.stages[name] for name in recipe.needed(self.name)]

    def sources(self, blend: Blend) -> dict[str, LockedSource]:
        """Return the source models of a blend, as they are locked."""
        locked = self.composer.lock.sources
        return {model: locked[model] for model in blend.models if model in locked}

    @property
    def read(self) -> list[str]:
        """The models that it takes anything of, its config among them."""
        keys = [self.composer.reference_source(self.name)]
        keys += [model for blend, _ in self.kinds for model in blend.models]
        locked = self.composer.lock.sources
        return [k for k in dict.fromkeys(keys) if k in locked and locked[k].role == "model"]

    def finding(self, check: str, message: str) -> Finding:
        """Return a finding about it, at its document."""
        return Finding(check, message, self.stage.where, self.name)


def places(tensors: Sequence[str]) -> str:
    """Return tensors as modules and layers: ``k_proj, q_proj of layers 8-71``."""
    modules = sorted({module_of(tensor).rsplit(".", 1)[-1] for tensor in tensors})
    layers = {place[1] for place in map(layer_of, tensors) if place}
    shown = ", ".join(modules[:_NAMED])
    if len(modules) > _NAMED:
        shown += f" and {len(modules) - _NAMED} more"
    if not layers:
        return shown
    return f"{shown} of layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"
