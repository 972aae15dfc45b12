"""Recipes: mergekit's multi-document YAML, read into typed stages, every mistake with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shardmerge import registry
from shardmerge.dtypes import dtype_code
from shardmerge.errors import UserError, did_you_mean
from shardmerge.parameters import Setting, parse_settings
from shardmerge.references import Reference, parse_reference
from shardmerge.yamlfile import Node, load_documents

DOCUMENT_KEYS = (
    "name",
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*")


@dataclass(frozen=True)
class Input:
    """A model that a stage reads.

    Args:
        model: The reference.
        parameters: Settings by parameter name.
        layers: Half-open range of the model's layers, or None for all.
        where: File and line.
    """

    model: Reference
    parameters: Mapping[str, Setting]
    layers: tuple[int, int] | None
    where: str


@dataclass(frozen=True)
class Slice:
    """A run of output layers and the inputs that it is made from."""

    inputs: tuple[Input, ...]
    parameters: Mapping[str, Setting]
    base_model: Reference | None
    where: str


@dataclass(frozen=True)
class Stage:
    """One document of a recipe.

    Args:
        name: Its ``name``, or the recipe file's stem.
        method: Name of the merge method.
        base_model: The document's base model, or None.
        slices: The output's runs of layers; ``models:`` makes one of all layers.
        parameters: Settings at the top level.
        dtype, out_dtype: safetensors codes, or None.
        tokenizer_source: ``base``, ``union``, a reference, or None.
        text: The document as written.
        where: File and line.
    """

    name: str
    method: str
    base_model: Reference | None
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Setting]
    dtype: str | None
    out_dtype: str | None
    tokenizer_source: str | None
    text: str
    where: str

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(i for s in self.slices for i in s.inputs)

    @property
    def references(self) -> tuple[Reference, ...]:
        """All models that the stage names, in order: the base model first, then the inputs."""
        bases = [self.base_model, *(s.base_model for s in self.slices)]
        named = [b for b in bases if b is not None] + [i.model for i in self.inputs]
        if self.tokenizer_source not in (None, "base", "union"):
            named.append(parse_reference(self.tokenizer_source))
        return tuple(dict.fromkeys(named))

    @property
    def reference_model(self) -> Reference:
        """The model whose config, layout and tokenizer the result takes."""
        return self.base_model or self.inputs[0].model

    @property
    def levels(self) -> Iterator[Mapping[str, Setting]]:
        """All settings of the stage, wherever they stand."""
        yield self.parameters
        for piece in self.slices:
            yield piece.parameters
            for item in piece.inputs:
                yield item.parameters


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Args:
        path: As the configuration names it.
        stages: By name, every stage after those that it reads.
        final: Names of the stages that no other reads, in the order of the file.
        text: The file as written.
        warnings: What is odd but allowed, one sentence each.
    """

    path: str
    stages: Mapping[str, Stage]
    final: tuple[str, ...]
    text: str
    warnings: tuple[str, ...]

    @property
    def sources(self) -> tuple[Reference, ...]:
        """The models that are not stages, without adapters, in order of first use."""
        named = (r for s in self.stages.values() for r in s.references)
        return tuple(
            dict.fromkeys(replace(r, lora=None) for r in named if r.model not in self.stages)
        )


def load_recipe(path: str | Path) -> Recipe:
    """Return the recipe in a YAML file.

    Raises:
        UserError: With file and line, for any mistake that shows without the models.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", str(path)) from None
    return parse_recipe(text, str(path))


def parse_recipe(text: str, path: str) -> Recipe:
    """Return the recipe that a YAML text writes; ``path`` is for messages and the default name."""
    stages: dict[str, Stage] = {}
    warnings: list[str] = []
    for node, source in load_documents(text, path):
        stage = _stage(node, source, Path(path).stem, warnings)
        if other := stages.get(stage.name):
            raise node.error(
                f"a second document is named {stage.name!r} (the first: {other.where})",
                "Give every document a `name` of its own.",
            )
        stages[stage.name] = stage
    if not stages:
        raise UserError("holds no document", path, "Write a mergekit recipe into it.")
    used = {r.model for s in stages.values() for r in s.references}
    final = tuple(name for name in stages if name not in used)
    return Recipe(path, _in_order(stages), final, text, tuple(warnings))


def _in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    done: dict[str, Stage] = {}

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if name in chain:
            loop = " -> ".join([*chain[chain.index(name) :], name])
            raise UserError(f"documents read each other in a circle: {loop}", stages[name].where)
        if name not in done:
            for reference in stages[name].references:
                if reference.model in stages:
                    visit(reference.model, (*chain, name))
            done[name] = stages[name]

    for name in stages:
        visit(name, ())
    return done


def _stage(node: Node, text: str, default_name: str, warnings: list[str]) -> Stage:
    table = node.mapping("a recipe document", DOCUMENT_KEYS)
    table = {key: value for key, value in table.items() if value.value is not None}
    name = table["name"].text("name") if "name" in table else default_name
    if not _SAFE_NAME.fullmatch(name):
        raise (table.get("name") or node).error(
            f"the name {name!r} cannot be a folder's name",
            "Use letters, digits, and `_ . + -`, the first a letter, digit or `_`.",
        )
    if "merge_method" not in table:
        raise node.error("the document has no `merge_method`")
    method_node = table["merge_method"]
    method = registry.method(method_node.text("merge_method"), method_node.where)
    base = _reference(table["base_model"]) if "base_model" in table else None
    forms = [key for key in ("models", "slices", "modules") if key in table]
    if len(forms) != 1:
        found = " and ".join(f"`{form}`" for form in forms) or "none of them"
        raise node.error(f"give exactly one of `models`, `slices`, `modules`; there is {found}")
    stage = Stage(
        name=name,
        method=method.name,
        base_model=base,
        slices=_slices(table[forms[0]], forms[0], base),
        parameters=parse_settings(table["parameters"]) if "parameters" in table else {},
        dtype=_dtype(table.get("dtype")),
        out_dtype=_dtype(table.get("out_dtype")),
        tokenizer_source=_tokenizer_source(table.get("tokenizer_source")),
        text=text,
        where=node.where,
    )
    for key in ("tokenizer", "chat_template"):
        if key in table:
            raise table[key].error(f"`{key}` is not supported yet", "Use `tokenizer_source`.")
    for piece in stage.slices:
        _check_inputs(piece, method, piece.base_model or base)
    _check_names(stage, method, warnings)
    return stage


def _slices(node: Node, form: str, base: Reference | None) -> tuple[Slice, ...]:
    if form == "modules":
        raise node.error("`modules` is not supported yet", "Use `models`.")
    if form == "slices":
        raise node.error("`slices` is not supported yet", "Use `models`.")
    inputs = [_input(item) for item in node.sequence("models")]
    if not inputs:
        raise node.error("`models` is empty")
    # As mergekit has it: a base model that is not listed is an input all the same.
    if base and base not in [item.model for item in inputs]:
        inputs.append(Input(base, {}, None, node.where))
    return (Slice(tuple(inputs), {}, None, node.where),)


def _input(node: Node) -> Input:
    table = node.mapping("an entry of `models`", ("model", "parameters"))
    if "model" not in table:
        raise node.error("an entry of `models` has no `model`")
    parameters = table.get("parameters")
    has_parameters = parameters is not None and parameters.value is not None
    return Input(
        _reference(table["model"]), parse_settings(parameters) if has_parameters else {}, None,
        node.where,
    )  # fmt: skip


def _reference(node: Node) -> Reference:
    if isinstance(node.value, dict):
        table = node.mapping("a model reference", ("model", "lora", "override_architecture"))
        model, lora = table.get("model"), table.get("lora")
        if model is not None:
            path = model.value
            if isinstance(path, dict):
                parts = model.mapping("a model path", ("path", "revision"))
                path = "@".join(parts[k].text(k) for k in ("path", "revision") if k in parts)
            lora_text = f"+{lora.text('lora')}" if lora is not None and lora.value else ""
            return parse_reference(f"{path}{lora_text}", node.where)
    return parse_reference(node.text("a model"), node.where)


def _dtype(node: Node | None) -> str | None:
    return None if node is None else dtype_code(node.text("dtype"), node.where)


def _tokenizer_source(node: Node | None) -> str | None:
    if node is None:
        return None
    text = node.text("tokenizer_source")
    if text == "union":
        raise node.error("`tokenizer_source: union` is not supported yet", "Use `base`.")
    return text if text == "base" else str(_reference(node))


def _check_inputs(piece: Slice, method: registry.MergeMethod, base: Reference | None) -> None:
    models = [item.model for item in piece.inputs]
    for item in piece.inputs:
        if models.count(item.model) > 1:
            raise UserError(f"model {str(item.model)!r} is listed twice", item.where)
    needs = method.inputs
    has_base = base in models
    if needs.base == "required" and not has_base:
        raise UserError(
            f"merge_method {method.name!r} needs a `base_model`",
            piece.where,
            "Give `base_model:` with the model that the others were fine-tuned from.",
        )
    if needs.base == "forbidden" and has_base:
        raise UserError(f"merge_method {method.name!r} takes no `base_model`", piece.where)
    others = len(models) - (has_base and needs.base != "ignored")
    for count, low, high, what in (
        (len(models), needs.minimum, needs.maximum, "models (the base model counts)"),
        (others, needs.minimum_models, needs.maximum_models, "models besides the base model"),
    ):
        if (low is not None and count < low) or (high is not None and count > high):
            wanted = f"exactly {low}" if low == high else f"at least {low}"
            wanted = f"at most {high}" if high is not None and count > high != low else wanted
            raise UserError(
                f"merge_method {method.name!r} takes {wanted} {what}; here are {count}",
                piece.where,
            )


def _check_names(stage: Stage, method: registry.MergeMethod, warnings: list[str]) -> None:
    known = {p.name for m in registry.methods() for p in m.parameters}
    own = {p.name for p in method.parameters}
    for settings in stage.levels:
        for name, setting in settings.items():
            if name not in known:
                raise UserError(
                    f"unknown parameter {name!r}", setting.where, did_you_mean(name, own or known)
                )
            if name not in own:
                warnings.append(
                    f"{setting.where}: merge_method {method.name!r} has no parameter {name!r}; "
                    "it is ignored, as mergekit does"
                )
