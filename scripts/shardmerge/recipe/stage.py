"""What a recipe's document says, typed: a stage, its slices, their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from shardmerge.base.errors import UserError
from shardmerge.methods import registry
from shardmerge.recipe.extraction import Extraction
from shardmerge.recipe.parameters import Setting
from shardmerge.recipe.references import Reference

#: The parameter that names a file of text which a model reads when it is measured.
TEXT_PARAMETER = "text"


@dataclass(frozen=True)
class TokenRule:
    """Where a token's embedding comes from.

    Args:
        token: The token.
        kind: ``model``: from the same token of a model; ``token``: from another token of a model;
            ``zero``; None where only `force` was given.
        model: The model, or None.
        other: The other token, or its id.
        force: Whether models that have the token get this embedding too.
        where: File and line.
    """

    token: str
    kind: Literal["model", "token", "zero"] | None
    model: Reference | None
    other: str | int | None
    force: bool
    where: str


@dataclass(frozen=True)
class Approximation:
    """How a model gets rows for tokens of the result that it lacks, from its own rows.

    Args:
        method: Of ``algebra.transplant``.
        donor: Model whose embeddings say what is alike; None for the one whose tokenizer it is.
        k: How many rows one is made of, or None for the default.
        cosine: Whether neighbours are those with the most similar direction.
        weighting: How neighbours are weighted, or the parts of a token.
        prefix, byte: In which tensors (``embed``, ``lm_head``) a token may take the row of a prefix
            of it, or of its byte's token.
        scale: What the new rows are multiplied by.
        noise: Standard deviation of normal random numbers that are added to new rows before.
        seed: Of all that is random.
        magikarp: Whether rows of tokens that a model was hardly trained on make no others.
        where: File and line.
    """

    method: str
    donor: Reference | None
    k: int | None
    cosine: bool
    weighting: str
    prefix: tuple[str, ...]
    byte: tuple[str, ...]
    scale: float
    magikarp: bool
    where: str
    noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class TokenizerSettings:
    """What the tokenizer of a stage's result is.

    Args:
        source: ``union``, ``base``, or a model.
        rules: Of single tokens, in the recipe's order.
        pad_to_multiple_of: What the number of embeddings is rounded up to, or None.
        where: File and line.
        approximation: How rows are made of tokens that a model lacks, or None.
    """

    source: Literal["union", "base"] | Reference
    rules: tuple[TokenRule, ...]
    pad_to_multiple_of: int | None
    where: str
    approximation: Approximation | None = None

    @property
    def model(self) -> Reference | None:
        """The model that is named as the source, if one is."""
        return self.source if isinstance(self.source, Reference) else None

    @property
    def donor(self) -> Reference | None:
        """The model that is named as the donor of embeddings, if one is."""
        return self.approximation.donor if self.approximation else None


def unknown_rule(rule: TokenRule) -> UserError:
    """Return the error of a rule that is needed but does not say where the embedding comes from."""
    return UserError(
        f"token {rule.token!r} is not in every model, and its rule names no source",
        rule.where,
        "Write `source: MODEL`, `source: {kind: zero}` or `source: {kind: model_token, ...}`.",
    )


@dataclass(frozen=True)
class Input:
    """A model that a stage reads.

    Args:
        model: The reference.
        parameters: Settings by parameter name.
        layers: Half-open range of the model's layers, or None for all.
        where: File and line.
        listed: Whether the recipe lists it, and does not name it as the base model alone.
    """

    model: Reference
    parameters: Mapping[str, Setting]
    layers: tuple[int, int] | None
    where: str
    listed: bool = True


@dataclass(frozen=True)
class Slice:
    """A run of output layers and the inputs that it is made from.

    Args:
        inputs: All with a range of layers of one length, or all without.
        parameters: Settings of the slice.
        base_model: Its own base model, or None for the document's.
        where: File and line.
    """

    inputs: tuple[Input, ...]
    parameters: Mapping[str, Setting]
    base_model: Reference | None
    where: str

    @property
    def whole(self) -> bool:
        """Whether it is made from all layers of its inputs, as ``models`` writes it."""
        return self.inputs[0].layers is None


@dataclass(frozen=True)
class Module:
    """A part of the output model: one stack of layers and what belongs to it.

    Args:
        name: Key under ``modules``, or None for the whole model.
        slices: Its runs of layers in order; ``models`` makes one of all layers.
        parameters: Settings of the module.
        where: File and line.
    """

    name: str | None
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Setting]
    where: str


@dataclass(frozen=True)
class Expert:
    """What a mixture makes of one of the models that it is assembled from.

    Args:
        positive, negative: Prompts that the router sends to it, and away from it.
        noise: Standard deviation of noise that is added to its weights, or None.
        residual: Factor of its down projections, or None.
        where: File and line.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    noise: float | None
    residual: float | None
    where: str


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts that a stage assembles from dense models.

    Args:
        experts, shared: In the order of the stage's inputs, the shared ones behind the others.
        gate_mode: How routers are made.
        experts_per_token: How many experts a token is sent to.
        architecture: Beginning of the wanted architecture's name, or None.
        seed: Of what is random.
    """

    experts: tuple[Expert, ...]
    shared: tuple[Expert, ...]
    gate_mode: str
    experts_per_token: int
    architecture: str | None
    seed: int

    @property
    def all(self) -> tuple[Expert, ...]:
        """The routed experts, then the shared ones."""
        return self.experts + self.shared


@dataclass(frozen=True)
class ExpertChoice:
    """Experts that a stage takes out of a mixture.

    Args:
        experts: Their numbers, in the order that they get.
        dense: Whether the one expert becomes the MLP of a dense model.
        experts_per_token: How many experts a token is sent to from now on, or None as before.
        where: File and line of the numbers.
    """

    experts: tuple[int, ...]
    dense: bool
    experts_per_token: int | None
    where: str


@dataclass(frozen=True)
class Stage:
    """One document of a recipe.

    Args:
        name: Its ``name``, or the recipe file's stem.
        method: Name of the merge method.
        base_model: The document's base model, or None.
        modules: The output's parts; ``models`` and ``slices`` make one of the whole model.
        other_modules: What becomes of modules that ``modules`` does not mention: ``keep``,
            ``drop``, or None to refuse them.
        parameters: Settings at the top level.
        dtype, out_dtype: safetensors codes, or None; docs/numerics.md says what they mean.
        tokenizer: What its tokenizer is, or None for that of its reference model.
        chat_template: ``auto``, a known name, a Jinja template, or None.
        text: The document as written.
        where: File and line.
        mixture: The mixture of experts that it assembles, or None.
        choice: The experts that it takes out of a mixture, or None.
        extraction: How its model becomes an adapter, or None where it makes a model.
        tensors: Of a merge of checkpoints by the names of their tensors alone, which tensors the
            result has (``TENSORS``); None where models are merged.
    """

    name: str
    method: str
    base_model: Reference | None
    modules: tuple[Module, ...]
    parameters: Mapping[str, Setting]
    dtype: str | None
    out_dtype: str | None
    tokenizer: TokenizerSettings | None
    chat_template: str | None
    text: str
    where: str
    mixture: Mixture | None = None
    choice: ExpertChoice | None = None
    extraction: Extraction | None = None
    other_modules: str | None = None
    tensors: str | None = None

    @property
    def drops(self) -> bool:
        """Whether only the text decoder is built, as a text model."""
        return self.other_modules == "drop"

    @property
    def keeps(self) -> bool:
        """Whether modules that are not mentioned are the base model's."""
        return self.other_modules == "keep"

    @property
    def measures(self) -> bool:
        """Whether models are measured while they read texts, which its parameters name."""
        return any(
            m.name == self.method and m.parameter(TEXT_PARAMETER) for m in registry.methods()
        )

    @property
    def slices(self) -> tuple[Slice, ...]:
        return tuple(s for m in self.modules for s in m.slices)

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(i for s in self.slices for i in s.inputs)

    @property
    def references(self) -> tuple[Reference, ...]:
        """All models that the stage names, in order: the base model first, then the inputs."""
        bases = [self.base_model, *(s.base_model for s in self.slices)]
        named = [b for b in bases if b is not None] + [i.model for i in self.inputs]
        if self.tokenizer and self.tokenizer.model:
            named.append(self.tokenizer.model)
        if self.tokenizer and self.tokenizer.donor:
            named.append(self.tokenizer.donor)
        return tuple(dict.fromkeys(named))

    @property
    def reference_model(self) -> Reference:
        """The model whose config, layout and tokenizer the result takes."""
        return self.base_model or self.inputs[0].model

    @property
    def levels(self) -> Iterator[Mapping[str, Setting]]:
        """All settings of the stage, wherever they stand."""
        yield self.parameters
        for module in self.modules:
            yield module.parameters
        for piece in self.slices:
            yield piece.parameters
            for item in piece.inputs:
                yield item.parameters
