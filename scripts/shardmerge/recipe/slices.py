"""The part of a document that names models: which inputs make which layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

from shardmerge.base.dtypes import dtype_code
from shardmerge.base.errors import UserError
from shardmerge.methods import registry
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.parameters import Setting, parse_settings
from shardmerge.recipe.references import Reference, parse_reference
from shardmerge.recipe.stage import Input, Module, Slice

#: The keys of a document of which exactly one says what the output is made from.
FORMS = ("models", "slices", "modules")
#: Keys that recipes write where they mean nothing, and where they would, or that they never do.
_ELSEWHERE = {
    "base_model": "only the document and a slice have one",
    "chat_template": "only the document has one",
    "dtype": "only the document has one",
    "layer_range": "only an entry of `sources` has one",
    "merge_method": "only the document has one",
    "out_path": "a document that others read needs a `name`",
    "pad_to_multiple_of": "it belongs under `tokenizer`",
    "residual_weight": "it does nothing in mergekit either",
    "revision": "write `model: NAME@REVISION`",
}


@cache
def misplaced() -> Mapping[str, str]:
    """Return keys that mean something at another place of a recipe, and where that is."""
    return dict.fromkeys(registry.parameter_names(), "it belongs under `parameters`") | _ELSEWHERE


def parse_modules(
    table: Mapping[str, Node], where: Node, base: Reference | None
) -> tuple[Module, ...]:
    """Return the parts of the output that a document's ``models``, ``slices`` or ``modules`` tells.

    Args:
        table: The document.
        where: Its place.
        base: Its base model, or None.

    Raises:
        UserError: For any mistake in them.
    """
    form = _form(table, FORMS, where)
    if form != "modules":
        return (Module(None, _slices(table[form], form, base), {}, where.where),)
    modules = []
    for name, node in table[form].mapping("`modules`").items():
        rows = _filled(node, f"module {name!r}", ("models", "slices", "parameters"))
        inner = _form(rows, FORMS[:2], node)
        modules.append(
            Module(name, _slices(rows[inner], inner, base), _parameters(rows), node.where)
        )
    if not modules:
        raise table[form].error("`modules` is empty")
    return tuple(modules)


def _form(table: Mapping[str, Node], forms: tuple[str, ...], where: Node) -> str:
    given = [key for key in forms if key in table]
    if len(given) != 1:
        found = " and ".join(f"`{form}`" for form in given) or "none of them"
        wanted = ", ".join(f"`{form}`" for form in forms)
        raise where.error(f"give exactly one of {wanted}; there is {found}")
    return given[0]


def _slices(node: Node, form: str, base: Reference | None) -> tuple[Slice, ...]:
    rows = node.sequence(f"`{form}`")
    if not rows:
        raise node.error(f"`{form}` is empty")
    if form == "slices":
        return tuple(_slice(row) for row in rows)
    inputs = [_input(row, "an entry of `models`") for row in rows]
    # As mergekit has it: a base model that is not listed is an input all the same.
    if base and base not in [item.model for item in inputs]:
        inputs.append(Input(base, {}, None, node.where, listed=False))
    return (Slice(tuple(inputs), {}, None, node.where),)


def _slice(node: Node) -> Slice:
    table = _filled(node, "an entry of `slices`", ("sources", "base_model", "parameters"))
    if "sources" not in table:
        raise node.error("an entry of `slices` has no `sources`")
    rows = table["sources"].sequence("`sources`")
    if not rows:
        raise table["sources"].error("`sources` is empty")
    inputs = tuple(_input(row, "an entry of `sources`", layers=True) for row in rows)
    lengths = [end - begin for begin, end in (i.layers for i in inputs)]
    for item, length in zip(inputs, lengths, strict=True):
        if length != lengths[0]:
            raise UserError(
                f"the slice takes {lengths[0]} layers of {str(inputs[0].model)!r} but {length} of "
                f"{str(item.model)!r}",
                item.where,
                "All sources of a slice must give the same number of layers.",
            )
    if not lengths[0]:
        node.warn(
            "empty-slice",
            "the slice takes no layers: the second number of `layer_range` is not counted, "
            "`[0, 1]` is layer 0 alone",
        )
    base = parse_model(table["base_model"]) if "base_model" in table else None
    return Slice(inputs, _parameters(table), base, node.where)


def _input(node: Node, what: str, *, layers: bool = False) -> Input:
    if isinstance(node.value, str):
        raise node.error(f"{what} is only a name", f"Write `- model: {node.value}`.")
    known = ("model", "layer_range", "parameters") if layers else ("model", "parameters")
    table = _filled(node, what, known)
    if "model" not in table:
        raise node.error(f"{what} has no `model`")
    if layers and "layer_range" not in table:
        raise node.error(
            f"{what} has no `layer_range`",
            "Write `layer_range: [0, 32]` for all of 32 layers, or list whole models as `models`.",
        )
    model = parse_model(table["model"])
    chosen = _layer_range(table["layer_range"]) if layers else None
    return Input(model, _parameters(table), chosen, node.where)


def _layer_range(node: Node) -> tuple[int, int]:
    numbers = [_whole(n.value) for n in node.value] if isinstance(node.value, list) else []
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1]:
        raise node.error(
            "`layer_range` must be two whole numbers from 0 on, the first not larger",
            "Write `[0, 8]` for the layers 0 to 7; none is counted from the end.",
        )
    return numbers[0], numbers[1]


def _whole(value: object) -> int:
    """Return a whole number, which may be written as ``"8"`` or ``8.0``; -1 if it is none."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        return -1
    return int(value)


def _filled(node: Node, what: str, known: tuple[str, ...]) -> dict[str, Node]:
    """Return a mapping without the keys that have no value."""
    table = node.mapping(what, known, misplaced())
    return {key: n for key, n in table.items() if n.value is not None}


def _parameters(table: Mapping[str, Node]) -> dict[str, Setting]:
    return parse_settings(table["parameters"]) if "parameters" in table else {}


def parse_model(node: Node) -> Reference:
    """Return a reference that is written as a text or as mergekit's mapping.

    Raises:
        UserError: If it is neither.
    """
    if isinstance(node.value, dict):
        table = node.mapping("a model reference", ("model", "lora", "override_architecture"))
        model, lora = table.get("model"), table.get("lora")
        if model is not None:
            has_lora = lora is not None and lora.value is not None
            adapter = f"+{_path(lora, 'lora')}" if has_lora else ""
            return parse_reference(_path(model, "model") + adapter, node.where)
    return parse_reference(node.text("a model"), node.where)


def parse_dtype(node: Node | None) -> str | None:
    """Return the safetensors code of a dtype that may be given.

    Raises:
        UserError: If it is none that weights have.
    """
    return None if node is None else dtype_code(node.text("dtype"), node.where)


def _path(node: Node, what: str) -> str:
    """Return ``path@revision`` of a path, written as text or as a mapping."""
    if not isinstance(node.value, dict):
        return node.text(what)
    parts = node.mapping(f"the path of a {what}", ("path", "revision"))
    given = (parts[key] for key in ("path", "revision") if key in parts)
    return "@".join(part.text(what) for part in given if part.value is not None)


def check_inputs(
    inputs: tuple[Input, ...], method: registry.MergeMethod, base: Reference | None, where: str
) -> None:
    """Check that a slice has the inputs that a method needs.

    Args:
        inputs: Of the slice.
        method: The stage's.
        base: The slice's base model or else the stage's, or None.
        where: Place of the slice.

    Raises:
        UserError: If it has not.
    """
    models = [item.model for item in inputs]
    counts = Counter(models)
    for item in inputs:
        if counts[item.model] > 1:
            raise UserError(
                f"model {str(item.model)!r} is listed twice",
                item.where,
                "Remove one of the two, and raise the other's weight if you mean that.",
            )
    needs = method.inputs
    has_base = base in models
    if base and not has_base and needs.base != "ignored":
        raise UserError(
            f"the slice does not list its base model {str(base)!r}",
            where,
            "Add it to the slice's `sources`, with a `layer_range`.",
        )
    if needs.base == "required" and not has_base:
        raise UserError(
            f"merge_method {method.name!r} needs a `base_model`",
            where,
            "Give `base_model:` with the model that the others were fine-tuned from.",
        )
    if needs.base == "forbidden" and has_base:
        raise UserError(f"merge_method {method.name!r} takes no `base_model`", where)
    others = len(models) - (has_base and needs.base != "ignored")
    for count, low, high, what in (
        (len(models), needs.minimum, needs.maximum, "models (the base model counts)"),
        (others, needs.minimum_models, needs.maximum_models, "models besides the base model"),
    ):
        if (low is not None and count < low) or (high is not None and count > high):
            wanted = f"exactly {low}" if low == high else f"at least {low}"
            wanted = f"at most {high}" if high is not None and count > high != low else wanted
            raise UserError(
                f"merge_method {method.name!r} takes {wanted} {what}, but {count} are given",
                where,
            )
