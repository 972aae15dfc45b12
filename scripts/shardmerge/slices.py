"""The part of a document that names models: which inputs make which layers."""

from __future__ import annotations

from shardmerge import registry
from shardmerge.errors import UserError
from shardmerge.parameters import parse_settings
from shardmerge.references import Reference, parse_reference
from shardmerge.stage import Input, Slice
from shardmerge.yamlfile import Node


def parse_slices(node: Node, form: str, base: Reference | None) -> tuple[Slice, ...]:
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
        parse_model(table["model"]), parse_settings(parameters) if has_parameters else {}, None,
        node.where,
    )  # fmt: skip


def parse_model(node: Node) -> Reference:
    if isinstance(node.value, dict):
        table = node.mapping("a model reference", ("model", "lora", "override_architecture"))
        model, lora = table.get("model"), table.get("lora")
        if model is not None:
            has_lora = lora is not None and lora.value is not None
            adapter = f"+{_path(lora, 'lora')}" if has_lora else ""
            return parse_reference(_path(model, "model") + adapter, node.where)
    return parse_reference(node.text("a model"), node.where)


def _path(node: Node, what: str) -> str:
    """Return ``path@revision`` of a path, written as text or as a mapping."""
    if not isinstance(node.value, dict):
        return node.text(what)
    parts = node.mapping(f"the path of a {what}", ("path", "revision"))
    given = (parts[key] for key in ("path", "revision") if key in parts)
    return "@".join(part.text(what) for part in given if part.value is not None)


def check_inputs(piece: Slice, method: registry.MergeMethod, base: Reference | None) -> None:
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
