"""Every tensor of every stage as an expression over source tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.numerics import FLOAT32, Numerics
from shardmerge.compose.architecture.text_part import has_other_parts
from shardmerge.compose.by_name import CheckpointModel
from shardmerge.compose.context import Context
from shardmerge.compose.derived_model import ConfigChange, DerivedModel
from shardmerge.compose.experts.choice import ExpertChoiceModel
from shardmerge.compose.experts.mixture import MixtureModel
from shardmerge.compose.lora_model import LoraModel
from shardmerge.compose.made_sources import FileKey, MadeSource
from shardmerge.compose.models import Model, SourceModel
from shardmerge.compose.stage_model import StageModel
from shardmerge.compose.text_model import text_model
from shardmerge.compose.tokenizers import StageTokenizers
from shardmerge.compose.tying import head_differs
from shardmerge.recipe.parameters import Rule
from shardmerge.recipe.recipe import Recipe
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Stage
from shardmerge.sources.lock import Lock


class Composer(Context):
    """Expressions of one recipe's stages.

    Args:
        recipe: The parsed recipe.
        lock: Its sources.
        numerics: In which stages are composed.
        delta_dtype: Code of the type of task vectors, or None for the stage's own.
        geometric: Names of the stages whose norms are merged by ratios.
    """

    def __init__(
        self,
        recipe: Recipe,
        lock: Lock,
        numerics: Numerics,
        delta_dtype: str | None = None,
        geometric: Collection[str] = (),
    ) -> None:
        self.recipe = recipe
        self.lock = lock
        self.numerics = numerics
        self.delta_dtype = delta_dtype
        self.geometric = geometric
        self.tokenizers = StageTokenizers(self)
        self.made: dict[FileKey, MadeSource] = {}
        self._models: dict[str, Model] = {}
        self._texts: dict[str, Model] = {}

    def outputs(self, stage: str) -> list[OutputTensor]:
        """Return the tensors of a stage built as a model, in the order of its reference model.

        Raises:
            UserError: For shapes that differ, missing tensors, filters that are misspelt.
        """
        model = self._built(stage)
        return [
            OutputTensor(name, entry.dtype, entry.shape, model.expression(name))
            for name, entry in model.table.items()
        ]

    def sums(self, stage: str, outputs: Sequence[OutputTensor]) -> dict[str, ex.Expression]:
        """Return a stage's tensors as sums, which read best, whichever way it is computed."""
        if self.numerics.folds:
            return {t.name: t.expression for t in outputs}
        algebra = Composer(self.recipe, self.lock, FLOAT32, self.delta_dtype)
        model = algebra._built(stage)
        found = {t.name: model.expression(t.name) for t in outputs}
        algebra.forget()
        return found

    def _built(self, stage: str) -> Model:
        """Return a stage's model, all that go into it made before: none waits for another."""
        return [self.model(Reference(name)) for name in self.recipe.needed(stage)][-1]

    def model(self, reference: Reference) -> Model:
        """Return the model that a reference names: a source or a stage, with or without adapter."""
        key = str(reference)
        if key not in self._models:
            if reference.lora:
                base, adapter = self.model(Reference(reference.model)), reference.lora
                locked = self.lock.sources[adapter]
                self._models[key] = LoraModel(key, base, adapter, locked, self.numerics)
            elif key in self.recipe.stages:
                self._models[key] = self._stage_model(self.recipe.stages[key])
            else:
                self._models[key] = SourceModel(key, self.lock, self.numerics)
        return self._models[key]

    def _stage_model(self, stage: Stage) -> Model:
        if stage.mixture:
            return MixtureModel(self, stage)
        if stage.choice:
            return ExpertChoiceModel(self, stage)
        kind = CheckpointModel if stage.tensors else StageModel
        return kind(self, stage, self.tokenizers.align)

    def changes(self, stage: str) -> list[ConfigChange]:
        """Return how config.json of a stage differs from its source's, through other stages.

        Those of a stage's base come before its own.
        """
        found, key = [], stage
        while key in self.recipe.stages:
            model = self.model(Reference(key))
            if isinstance(model, DerivedModel):
                found.insert(0, model.change)
            key = self.recipe.stages[key].reference_model.model
        return found

    def forget(self) -> None:
        """Let go of all that knows this composer, which is of no use then.

        A collector takes long to find that nothing else knows them, and the lock with them.
        """
        vars(self).clear()

    def is_untied(self, stage: str) -> bool:
        """Whether a stage's model has an output embedding that its source's config denies it."""
        sources = self.lock.sources.items()
        tied = {key for key, source in sources if source.config.get("tie_word_embeddings") is True}
        if self.reference_source(stage) in tied and head_differs(self._built(stage), tied):
            return True
        key = stage
        while key in self.recipe.stages:
            if self.model(Reference(key)).assembly.untied:
                return True
            key = self.recipe.stages[key].reference_model.model
        return False

    def unmatched(self, stage: str) -> Sequence[Rule]:
        """Return the rules of a stage's parameters whose filter matches no tensor."""
        return self.model(Reference(stage)).settings.unmatched

    def unclear(self, stage: str) -> Mapping[str, Sequence[Rule]]:
        """Return the rules of a stage that name parts of a tensor merged as a whole, by tensor."""
        return self.model(Reference(stage)).settings.unclear

    def is_text_alone(self, stage: str) -> bool:
        """Whether a stage's model is the text decoder of the source that its config is from."""
        key = stage
        while key in self.recipe.stages:
            if self.recipe.stages[key].drops:
                return has_other_parts(self.model(Reference(self.reference_source(key))).table)
            key = self.recipe.stages[key].reference_model.model
        return False

    def origin(self, stage: str, source: str | None = None) -> Model:
        """Return a source as the model that a stage's config, layers and layout are counted from.

        Args:
            stage: The stage.
            source: The source; by default ``reference_source``.
        """
        key = source or self.reference_source(stage)
        if not self.is_text_alone(stage):
            return self.model(Reference(key))
        if key not in self._texts:
            self._texts[key] = text_model(self.model(Reference(key)))
        return self._texts[key]

    def reference_source(self, stage: str) -> str:
        """Return the source whose config and layout a stage takes, through other stages."""
        key = stage
        while key in self.recipe.stages:
            key = self.recipe.stages[key].reference_model.model
        return key
