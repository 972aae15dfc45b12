"""Recipes: mergekit's multi-document YAML, read into stages in the order of their work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import read_text
from shardmerge.base.findings import Finding
from shardmerge.base.pathnames import too_long
from shardmerge.recipe.document import parse_stage
from shardmerge.recipe.nodes import Node, load_documents
from shardmerge.recipe.references import Reference, parse_reference
from shardmerge.recipe.stacks import written_out
from shardmerge.recipe.stage import TEXT_PARAMETER, Slice, Stage, TokenizerSettings

_SAFE = re.compile(r"[A-Za-z0-9_][\w.+-]*")


def folder_name(name: str) -> str:
    """Return a name as a folder may have it: itself where it can be, else without odd characters.

    What is left has letters, digits and ``_ . + -``, and begins with a letter, a digit or ``_``.
    """
    if _SAFE.fullmatch(name):
        return name
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    return plain if _SAFE.fullmatch(plain) else f"model-{plain}".rstrip("-")


def renamed(stage: Stage, names: Mapping[str, str]) -> Stage:
    """Return a stage under its new name, which reads others by theirs.

    Args:
        stage: As its document was read.
        names: Of all documents: as written, and new.
    """

    def reference(given: Reference | None) -> Reference | None:
        if given is None or given.model not in names:
            return given
        return Reference(names[given.model], None, given.lora)

    def piece(given: Slice) -> Slice:
        inputs = tuple(replace(item, model=reference(item.model)) for item in given.inputs)
        return replace(given, inputs=inputs, base_model=reference(given.base_model))

    def tokenizer(given: TokenizerSettings) -> TokenizerSettings:
        rules = tuple(replace(rule, model=reference(rule.model)) for rule in given.rules)
        source = reference(given.model) if given.model else given.source
        found = given.approximation
        if found:
            found = replace(found, donor=reference(found.donor))
        return replace(given, source=source, rules=rules, approximation=found)

    return replace(
        stage,
        name=names[stage.name],
        base_model=reference(stage.base_model),
        modules=tuple(replace(m, slices=tuple(map(piece, m.slices))) for m in stage.modules),
        tokenizer=tokenizer(stage.tokenizer) if stage.tokenizer else None,
    )


#: Documents in a chain in which each reads the next one.
MAX_CHAIN = 32


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Args:
        path: As the configuration names it.
        stages: By name, every stage after those that it reads.
        final: Names of the stages that no other reads, in the order of the file.
        text: The file as written, each ``stack`` as the slices that it stands for.
        warnings: What is odd but allowed and shows without the models.
        build: Of a recipe that makes one model for a sweep, the name of the model's folder; else
            the folders are called as the documents.
    """

    path: str
    stages: Mapping[str, Stage]
    final: tuple[str, ...]
    text: str
    warnings: tuple[Finding, ...]
    build: str | None = None

    @property
    def sources(self) -> tuple[Reference, ...]:
        """The models that are not stages, without adapters, in order of first use."""
        named = (r for s in self.stages.values() for r in s.references)
        return tuple(
            dict.fromkeys(replace(r, lora=None) for r in named if r.model not in self.stages)
        )

    @property
    def needs_vocabularies(self) -> bool:
        """Whether a stage says what its tokenizer is, so that the models' tokens must be known."""
        return any(stage.tokenizer for stage in self.stages.values())

    @property
    def needs_special_tokens(self) -> bool:
        """Whether tokens of different tokenizers are compared by what they are for."""
        return any(s.tokenizer and s.tokenizer.approximation for s in self.stages.values())

    @property
    def needs_templates(self) -> bool:
        """Whether a stage takes the chat template that most models have."""
        return any(stage.chat_template == "auto" for stage in self.stages.values())

    @property
    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """The texts whose tokens must be known, by the source whose tokenizer splits them.

        Raises:
            UserError: If a document between the two changes the tokenizer.
        """
        found: dict[str, dict[str, None]] = {}
        for stage in self.stages.values():
            if stage.mixture and stage.mixture.gate_mode == "cheap_embed":
                texts = found.setdefault(self._tokenized_by(stage), {})
                for one in stage.mixture.all:
                    texts |= dict.fromkeys((*one.positive, *one.negative))
        return {key: tuple(texts) for key, texts in found.items()}

    @property
    def texts(self) -> Mapping[str, str]:
        """Files of text that models read when they are measured, each with file and line."""
        found: dict[str, str] = {}
        for stage in self.stages.values():
            if stage.measures:
                for level in stage.levels:
                    for rule in level[TEXT_PARAMETER].rules if TEXT_PARAMETER in level else ():
                        if isinstance(rule.value, str):
                            found.setdefault(rule.value, rule.where)
        return found

    def _tokenized_by(self, stage: Stage) -> str:
        key = stage.reference_model.model
        while key in self.stages:
            if self.stages[key].tokenizer:
                raise UserError(
                    f"`gate_mode: cheap_embed` needs the tokens of {key!r}, which gets a tokenizer "
                    "of its own",
                    stage.where,
                    "Build that document as a model of a recipe of its own, and name its folder.",
                )
            key = self.stages[key].reference_model.model
        return key

    def where(self, model: str) -> str:
        """Return file and line of the first place that names a model or adapter."""
        for stage in self.stages.values():
            for item in stage.inputs:
                if model in (item.model.model, item.model.lora):
                    return item.where
            if any(model in (r.model, r.lora) for r in stage.references):
                return stage.where
        return self.path

    def needed(self, name: str) -> list[str]:
        """Return the stages that go into a stage, in the order of their work, itself the last."""
        found: set[str] = {name}
        for stage in reversed(self.stages.values()):
            if stage.name in found:
                found |= {r.model for r in stage.references if r.model in self.stages}
        return [s for s in self.stages if s in found]

    @property
    def adapters(self) -> tuple[Reference, ...]:
        """The LoRA adapters that models are read with, in order of first use."""
        named = (r for s in self.stages.values() for r in s.references)
        return tuple(dict.fromkeys(parse_reference(r.lora) for r in named if r.lora))

    @property
    def named(self) -> tuple[tuple[Reference, str], ...]:
        """All that a lock must hold, each with its role: ``model``, ``checkpoint``, ``adapter``."""
        plain = {r.model for s in self.stages.values() if s.tensors for r in s.references}
        roles = {True: "checkpoint", False: "model"}
        models = ((reference, roles[reference.model in plain]) for reference in self.sources)
        return (*models, *((reference, "adapter") for reference in self.adapters))


def load_recipe(path: str | Path) -> Recipe:
    """Return the recipe in a YAML file.

    Raises:
        UserError: With file and line, for any mistake that shows without the models.
    """
    return parse_recipe(read_text(path), str(path))


def parse_recipe(text: str, path: str) -> Recipe:
    """Return the recipe that a YAML text writes; ``path`` is for messages and the default name.

    Raises:
        UserError: As ``load_recipe``.
    """
    documents: list[tuple[Node, Stage]] = []
    found = list(load_documents(text, path))
    made = [written_out(node, source) for node, source in found]
    for node, source in made:
        documents.append((node, parse_stage(node, source, folder_name(Path(path).stem))))
    if [source for _, source in made] != [source for _, source in found]:
        text = "---\n".join(source for _, source in made)
    if not documents:
        raise UserError("holds no document", path, "Write a mergekit recipe into it.")
    stages = _by_name(documents)
    warnings: dict[tuple[str, str], Finding] = {}
    for odd in documents[0][0].warnings:  # what is odd in many places is told of the first
        warnings.setdefault((odd.check, odd.message), odd)
    _check_readers(stages)
    _check_kinds(stages)
    used = {r.model for s in stages.values() for r in s.references}
    final = tuple(name for name in stages if name not in used)
    return Recipe(path, _in_order(stages), final, text, tuple(warnings.values()))


def chosen(recipes: Sequence[Recipe], stages: str | Sequence[str]) -> dict[str, Recipe]:
    """Return the models that are built, by the names of their folders, each with its recipe.

    Args:
        recipes: All of a configuration.
        stages: Its ``stages``, which sweeps have no say in.

    Raises:
        UserError: If there is no document of a name that is asked for, or there are two.
    """
    wanted = ["final"] if stages == "final" else stages
    variants = {recipe.build: recipe for recipe in recipes if recipe.build}
    recipes = [recipe for recipe in recipes if not recipe.build]
    known = {name for recipe in recipes for name in recipe.stages}
    for name in wanted:
        if name != "final" and name not in known:
            raise UserError(
                f"no recipe has a document named {name!r}",
                "configuration: stages",
                did_you_mean(name, known | {"final"}),
            )
    found: dict[str, Recipe] = {}
    for recipe in recipes:
        for name, stage in recipe.stages.items():
            if name not in wanted and not ("final" in wanted and name in recipe.final):
                continue
            if other := found.get(name):
                raise UserError(
                    f"a document named {name!r} is also in {other.path}",
                    stage.where,
                    "Both would be built in one folder: rename one, or give it a `name`.",
                )
            found[name] = recipe
    return found | variants


def _by_name(documents: list[tuple[Node, Stage]]) -> dict[str, Stage]:
    """Return stages under names that folders can have."""
    names = {stage.name: folder_name(stage.name) for _, stage in documents}
    stages: dict[str, Stage] = {}
    for node, stage in documents:
        name = names[stage.name]
        given = node.value.get("name")
        if reason := too_long(name):
            raise (given or node).error(
                f"the document's name, {name[:40]!r}..., {reason}", "Give it a shorter `name`."
            )
        if other := stages.get(name):
            what = f"is named {name!r}" if given else "has no `name`"
            raise node.error(
                f"a second document {what} (the first: {other.where})",
                "Give every document a `name` of its own; by it others read what it makes.",
            )
        if name != stage.name:
            message = f"the model is called {name!r}: {stage.name!r} cannot be a folder's name"
            given.warn("renamed", message)
        stages[name] = renamed(stage, names)
    return stages


def _check_readers(stages: Mapping[str, Stage]) -> None:
    """Raise UserError if a document reads an adapter of this recipe as if it were a model."""
    adapters = {name for name, stage in stages.items() if stage.extraction}
    for stage in stages.values():
        for reference in stage.references:
            if adapters & {reference.model, reference.lora}:
                raise UserError(
                    f"reads {str(reference)!r}, but a document makes an adapter of that name",
                    stage.where,
                    "Build the adapter first; then name its folder as `model+folder`.",
                )


def _check_kinds(stages: Mapping[str, Stage]) -> None:
    """Raise UserError if what one document reads as a checkpoint is a model for another one."""
    readers: dict[str, Stage] = {}
    for stage in stages.values():
        for model in dict.fromkeys(r.model for r in stage.references):
            others = [stages[model]] if model in stages else []
            others += [readers.setdefault(model, stage)]
            for other in others:
                if bool(other.tensors) != bool(stage.tensors):
                    raise UserError(
                        f"{model!r} is a checkpoint for one document, which merges tensors by "
                        f"their names alone, and a model for the other ({other.where})",
                        stage.where,
                        "Write `tensors: same` into both documents, or into neither.",
                    )


def _in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stages, each after those that it reads.

    Raises:
        UserError: If they read each other in a circle, or in too long a chain.
    """
    done: dict[str, Stage] = {}
    lengths: dict[str, int] = {}

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if name in chain:
            loop = " -> ".join([*chain[chain.index(name) :], name])
            raise UserError(f"documents read each other in a circle: {loop}", stages[name].where)
        if name in done:
            return
        if len(chain) == MAX_CHAIN:
            raise _too_long(stages[name])
        read = [r.model for r in stages[name].references if r.model in stages]
        for other in read:
            visit(other, (*chain, name))
        done[name] = stages[name]
        lengths[name] = 1 + max((lengths[other] for other in read), default=0)
        if lengths[name] > MAX_CHAIN:
            raise _too_long(stages[name])

    for name in stages:
        visit(name, ())
    return done


def _too_long(stage: Stage) -> UserError:
    return UserError(
        f"more than {MAX_CHAIN} documents are in a chain in which each reads the next one",
        stage.where,
        "Build a document from the middle as a model, and start a new recipe from this model.",
    )
