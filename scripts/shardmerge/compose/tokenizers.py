"""The tokenizer of every stage of a recipe, and how its inputs are brought to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from shardmerge.base.errors import UserError
from shardmerge.compose.aligned_model import AlignedModel, vocabulary_rows
from shardmerge.compose.approximator import EMBEDDING, Approximator, Party, role_of
from shardmerge.compose.context import Context
from shardmerge.compose.parts import Piece
from shardmerge.compose.tokenizer.align import Alignment, Member
from shardmerge.compose.tokenizer.combine import Tokenizer, union
from shardmerge.compose.tokenizer.matching import ComparedTokens
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Stage


@dataclass(frozen=True)
class MadeRows:
    """What became of the tokens of a stage's tokenizer in one of its inputs.

    Args:
        stage: The stage.
        model: The input, as the recipe names it.
        method: How rows are made.
        own: How many tokens it has a row for.
        made: For how many others a row is made of its rows.
    """

    stage: str
    model: str
    method: str
    own: int
    made: int


class StageTokenizers:
    """The tokenizers of one recipe's models.

    Args:
        context: The recipe, and its models.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        #: Chat templates of sources and stages, as ``packing`` finds them.
        self.templates: dict[str, str | None] = {}
        self._stages: dict[str, Tokenizer | None] = {}
        self._alignments: dict[tuple[str, int, tuple[int, ...], str], Alignment] = {}
        self._compared: dict[tuple[int, str, int], ComparedTokens] = {}

    def of(self, reference: Reference) -> Tokenizer | None:
        """Return the tokenizer of a source or of a stage's result; None if it has none."""
        key = reference.model
        stage = self._context.recipe.stages.get(key)
        if stage is None:
            vocabulary = self._context.lock.sources[key].vocabulary
            return Tokenizer.of(key, vocabulary) if vocabulary and len(vocabulary) else None
        if key not in self._stages:
            made = self._made(stage) if stage.tokenizer else self.of(stage.reference_model)
            self._stages[key] = made
        return self._stages[key]

    def source_of(self, stage: str) -> str:
        """Return the source whose tokenizer files a stage's model gets or extends."""
        found = self.of(Reference(stage)) if self._context.recipe.needs_vocabularies else None
        if found:
            return found.source
        named = self._context.recipe.stages[stage].tokenizer
        model = named.model if named else None
        return self._context.reference_source(model.model if model else stage)

    def align(self, stage: Stage, piece: Piece, tensors: tuple[str | None, ...]) -> Piece:
        """Return a piece of a stage with models whose embeddings have the stage's tokens.

        Args:
            stage: The stage.
            piece: Its piece.
            tensors: The tensor of each input that is to agree, None where an input has none.
        """
        if not stage.tokenizer or self.of(Reference(stage.name)) is None:
            return piece
        used = tuple(i for i, tensor in enumerate(tensors) if tensor is not None)
        (tensor, *_) = (tensors[i] for i in used)
        alignment = self._alignment(stage, piece, used, tensor)
        stated = None if self._context.numerics.rounds_once else stage.dtype or ""
        having, names = [piece.models[i] for i in used], [tensors[i] for i in used]
        models = list(piece.models)
        for place, i in enumerate(used):
            models[i] = AlignedModel(place, having, names, alignment, stated)
        return replace(piece, models=tuple(models))

    def _alignment(
        self, stage: Stage, piece: Piece, used: tuple[int, ...], tensor: str
    ) -> Alignment:
        settings = stage.tokenizer
        role = role_of(tensor) if settings.approximation else ""
        key = (stage.name, piece.number, used, role)
        if key not in self._alignments:
            lead = self.of(stage.reference_model)
            members = [
                Member(
                    str(piece.inputs[i].model),
                    (self.of(piece.inputs[i].model) or lead).ids,
                    vocabulary_rows(piece.models[i], settings.where),
                )
                for i in used
            ]
            base = used.index(piece.base) if piece.base in used else None
            tokenizer = self.of(Reference(stage.name))
            self._alignments[key] = Alignment(
                members,
                base,
                tokenizer,
                settings.rules,
                settings.pad_to_multiple_of,
                self._approximator(stage, [piece.inputs[i].model for i in used], role),
            )
        return self._alignments[key]

    def _approximator(
        self, stage: Stage, references: Sequence[Reference], role: str
    ) -> Approximator | None:
        settings = stage.tokenizer
        if settings.approximation is None:
            return None
        made = self.of(Reference(stage.name))
        named = settings.donor or settings.model
        donors = [named] if named else [stage.reference_model, *references]
        return Approximator(
            self._context,
            settings.approximation,
            self._tokens(made, made.size),
            [self._party(stage, reference) for reference in references],
            [self._party(stage, reference) for reference in dict.fromkeys(donors)],
            role,
            stage.name,
        )

    def _party(self, stage: Stage, reference: Reference) -> Party:
        own = self.of(reference)
        found, model = own or self.of(stage.reference_model), self._context.model(reference)
        if found is None:
            raise UserError(f"model {str(reference)!r} has no tokenizer", stage.tokenizer.where)
        rows = vocabulary_rows(model, stage.tokenizer.where)
        source = found.source if found.is_original else None
        return Party(str(reference), self._tokens(found, rows), model, source)

    def _tokens(self, tokenizer: Tokenizer, rows: int) -> ComparedTokens:
        """Return a tokenizer's tokens as they are compared; made once for all tensors."""
        key = (id(tokenizer.ids), tokenizer.source, rows)
        if key not in self._compared:
            special = self._context.lock.sources[tokenizer.source].special_tokens or {}
            self._compared[key] = ComparedTokens(tokenizer.ids, special, rows)
        return self._compared[key]

    def made_rows(self, stages: Collection[str]) -> list[MadeRows]:
        """Return what became of the tokens of models that lack some, where rows are made of others.

        Args:
            stages: Whose inputs; their tensors are composed.
        """
        found: dict[tuple[str, str], MadeRows] = {}
        for (stage, _, _, role), alignment in self._alignments.items():
            if role != EMBEDDING or stage not in stages:
                continue
            method = self._context.recipe.stages[stage].tokenizer.approximation.method
            for index, member in enumerate(alignment.members):
                counts = alignment.counts(index)
                found.setdefault(
                    (stage, member.name), MadeRows(stage, member.name, method, *counts)
                )
        return list(found.values())

    def _made(self, stage: Stage) -> Tokenizer | None:
        settings = stage.tokenizer
        found = self._known(stage)
        lead = found.get(stage.reference_model)
        if not any(found.values()):
            if settings.rules or settings.pad_to_multiple_of:
                raise UserError("none of the models has a tokenizer", settings.where)
            return None
        if settings.model:
            made = self._within(settings.model)
            if made is None:
                raise UserError(f"model {str(settings.model)!r} has no tokenizer", settings.where)
        elif lead is None:
            raise UserError(
                f"model {str(stage.reference_model)!r} has no tokenizer, so that its embeddings "
                "cannot be matched with those of the others",
                settings.where,
                "Put its tokenizer's files into its folder, or name another `base_model`.",
            )
        else:
            made = lead
        if settings.source == "union":
            others = [one for key, one in found.items() if key != stage.reference_model]
            made = union(lead, [one for one in others if one])
        new = [(rule.token, None) for rule in settings.rules if rule.token not in made.ids]
        return made.with_added(new)

    def _known(self, stage: Stage) -> Mapping[Reference, Tokenizer | None]:
        """Return the tokenizers of the models that a stage merges, the base model's first."""
        merged = dict.fromkeys([stage.reference_model, *(i.model for i in stage.inputs)])
        return {reference: self._within(reference) for reference in merged}

    def _within(self, reference: Reference) -> Tokenizer | None:
        """Return a model's tokenizer without the tokens that it has no embedding of."""
        found = self.of(reference)
        return found and found.within(vocabulary_rows(self._context.model(reference)))
