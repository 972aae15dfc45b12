"""The models that a stage merges, and which tensors of each belong to a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.compose.architecture.modules import assign, modules_of
from shardmerge.compose.architecture.names import layer_of
from shardmerge.compose.architecture.predictors import Behind, behind
from shardmerge.compose.folders import main_tensors
from shardmerge.compose.layout_matching import Fit, Pattern
from shardmerge.compose.models import Model
from shardmerge.compose.other_modules import check_text_part, module_keys
from shardmerge.compose.parts import TextMerge
from shardmerge.compose.text_model import text_model
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Module, Stage


class ModuleTensors:
    """The models of a stage in the layout of its output.

    Args:
        stage: The stage.
        model_of: Gives the model that a reference names.
        texts: Gets what text models are merged with.
    """

    def __init__(
        self, stage: Stage, model_of: Callable[[Reference], Model], texts: list[TextMerge]
    ) -> None:
        self._stage, self._model_of, self._texts = stage, model_of, texts
        self._keys = module_keys(stage)
        self._fits: dict[str, Fit] = {}
        self._owned: dict[tuple[str, str | None], dict[str, str]] = {}
        self._reals: dict[tuple[str, str | None], dict[str, str]] = {}
        self._last: tuple[Mapping[str, str], Mapping[str, int], dict[str, str]] | None = None

    @cached_property
    def like(self) -> Model:
        """The model that output tensors are spelt as."""
        return self.model(self.like_reference)

    @property
    def like_reference(self) -> Reference:
        """The model that output tensors are spelt as, as the recipe names it."""
        item = self._stage.slices[0]
        base = item.base_model or self._stage.base_model
        references = [i.model for i in item.inputs]
        return base if base in references else references[0]

    def model(self, reference: Reference) -> Model:
        """Return the model that a reference names, its text decoder where that alone is built."""
        model = self._model_of(reference)
        return text_model(model) if self._stage.drops else model

    @cached_property
    def _pattern(self) -> Pattern:
        return Pattern(self.like)

    def fit(self, model: Model) -> Fit:
        """Return a model in the layout of the output."""
        if model.name not in self._fits:
            self._fits[model.name] = self._pattern.fit(model)
            if pair := self._fits[model.name].pair:
                check_text_part(self._stage, *pair)
                whole = pair[1].name
                self._texts.append(TextMerge(pair[0].name, whole, whole == self.like.name))
        return self._fits[model.name]

    def of(self, model: Model, module: Module) -> dict[str, str]:
        """Return a model's tensors that belong to a module: name in the output to its own."""
        if (model.name, module.name) not in self._owned:
            fit = self.fit(model)
            spelt = fit.names
            if module.name is not None and not self._stage.drops:
                table = self.like.table if fit.lacks else ()
                owner = assign([*table, *spelt], self._keys)
                spelt = {n: full for n, full in spelt.items() if owner[n] == module.name}
                if not spelt:
                    self._no_module(module, model)
            self._owned[model.name, module.name] = spelt
        return self._owned[model.name, module.name]

    def real(self, model: Model, module: Module) -> dict[str, str]:
        """Return what ``of`` does, without layers for multi-token prediction."""
        key = model.name, module.name
        if key not in self._reals:
            # models that are stored alike share one table of names
            tensors, counts = self.of(model, module), model.layer_counts
            if self._last is None or self._last[0] is not tensors or self._last[1] != counts:
                real = {n: full for n, full in tensors.items() if not behind(full, counts)}
                self._last = tensors, counts, real
            self._reals[key] = self._last[2]
        return self._reals[key]

    def behind(self, model: Model, module: Module) -> dict[Behind, tuple[str, str]]:
        """Return tensors of these layers alone: where to the name in the output and the own."""
        found, real = {}, self.real(model, module)
        for name, full in self.of(model, module).items():
            if name not in real and behind(full, model.layer_counts):
                own, spelt = layer_of(full), layer_of(name)
                counts = {spelt[0]: model.layer_counts[own[0]]} if own and spelt else {}
                found[behind(name, counts)] = name, full
        return found

    def _no_module(self, module: Module, model: Model) -> None:
        known = list(dict.fromkeys(modules_of(main_tensors(model)).values()))
        raise UserError(
            f"model {model.name!r} has no module {module.name!r}",
            module.where,
            did_you_mean(module.name, known),
        )

    def own(self, model: Model, module: Module, stack: str) -> str:
        """Return a model's own name of a stack."""
        for name, full in self.of(model, module).items():
            if in_stack(name, stack):
                return layer_of(full)[0]
        return stack


def in_stack(name: str, stack: str) -> bool:
    """Whether a tensor is of a layer of a stack."""
    found = layer_of(name)
    return found is not None and found[0] == stack
