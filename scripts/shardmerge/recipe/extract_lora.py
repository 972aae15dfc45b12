"""Documents that ask for a LoRA adapter: a model's difference from its base, of low rank."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

from shardmerge.base.dtypes import DTYPES, dtype_code
from shardmerge.base.errors import did_you_mean
from shardmerge.recipe.extraction import DECOMPOSITIONS, EXTRACT, Extraction
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.slices import parse_model
from shardmerge.recipe.stage import Input, Module, Slice, Stage

_KEYS = (
    *("model", "base_model", "rank", "energy", "singular_value_cut", "alpha", "modules"),
    *("exclude", "modules_to_save", "decomposition", "align", "seed", "dtype"),
)
#: As mergekit-extract-lora calls its options.
_OTHER_NAMES = {
    "max_rank": "it is called `rank`",
    "sv_epsilon": "it is called `singular_value_cut`",
    "embed_lora": "the embedding is listed among `modules`",
    "save_module": "it is called `modules_to_save`",
    "lora_alpha": "it is called `alpha`",
    "target_modules": "it is called `modules`",
}
#: As mergekit-extract-lora has it.
DEFAULT_RANK = 128
_LARGEST_RANK = 1 << 16


def parse_extraction(node: Node, text: str, default_name: str) -> Stage:
    """Return the stage of a document with ``extract_lora``; arguments as of ``parse_stage``.

    Raises:
        UserError: With file and line, for any mistake that shows without the models.
    """
    if isinstance(node.value, dict) and "merge_method" in node.value:
        raise node.error(
            "the document has `merge_method` and `extract_lora`",
            "Merge in a document of its own, and give its name as `model` of `extract_lora`.",
        )
    document = _known(node, "a document of an adapter", ("name", EXTRACT), {})
    inner = node.value[EXTRACT]
    table = _known(inner, f"`{EXTRACT}`", _KEYS, _OTHER_NAMES)
    for key in ("model", "base_model"):
        if key not in table:
            raise inner.error(f"`{EXTRACT}` has no `{key}`", f"Write `{key}: owner/name`.")
    model, base = parse_model(table["model"]), parse_model(table["base_model"])
    if model == base:
        raise table["model"].error("`model` and `base_model` are the same: nothing is extracted")
    return Stage(
        name=document["name"].text("name") if "name" in document else default_name,
        method=EXTRACT,
        base_model=base,
        modules=(_whole(Input(model, {}, None, table["model"].where), inner.where),),
        parameters={},
        dtype=None,
        out_dtype=None,
        tokenizer=None,
        chat_template=None,
        text=text,
        where=node.where,
        extraction=_extraction(table),
    )


def _known(
    node: Node, what: str, known: tuple[str, ...], others: Mapping[str, str]
) -> dict[str, Node]:
    """Return the keys of a mapping that are given, all of which are known."""
    table = node.mapping(what)
    for key, value in table.items():
        if key in others:
            raise value.error(f"{what} has no key {key!r}", f"In shardmerge {others[key]}.")
        if key not in known:
            hint = f"`{EXTRACT}` has it." if key in _KEYS else did_you_mean(key, known)
            raise value.error(f"unknown key {key!r} in {what}", hint)
    return {key: value for key, value in table.items() if value.value is not None}


def _whole(item: Input, where: str) -> Module:
    return Module(None, (Slice((item,), {}, None, where),), {}, where)


def _extraction(table: Mapping[str, Node]) -> Extraction:
    how = table["decomposition"].text("decomposition") if "decomposition" in table else "exact"
    if how not in DECOMPOSITIONS:
        raise table["decomposition"].error(
            f"unknown decomposition {how!r}", did_you_mean(how, DECOMPOSITIONS)
        )
    if how == "concatenate":
        for key in ("rank", "energy", "singular_value_cut"):
            if key in table:
                raise table[key].error(
                    f"`{key}` does not go with `decomposition: concatenate`, which keeps all",
                    "Leave it out, or write `decomposition: exact`.",
                )
    if "seed" in table and how != "randomized":
        raise table["seed"].error("`seed` is for `decomposition: randomized` only")
    if "align" in table and table["align"].value != "knots":
        raise table["align"].error(f"`align` must be `knots`, not {table['align'].kind}")
    modules, exclude, save = (_names(table, k) for k in ("modules", "exclude", "modules_to_save"))
    for name in modules:
        if name in (*exclude, *save):
            raise table["modules"].error(
                f"{name!r} is among `modules` and also excluded or saved whole",
                "Name a module in one of the lists.",
            )
    rank = _integer(table, "rank", 1, _LARGEST_RANK) or DEFAULT_RANK
    return Extraction(
        rank=None if how == "concatenate" else rank,
        energy=_number(table, "energy", 1.0),
        cut=_number(table, "singular_value_cut"),
        alpha=_number(table, "alpha"),
        modules=modules,
        exclude=exclude,
        save=save,
        decomposition=how,
        seed=_integer(table, "seed", 0, 2**63 - 1) or 0,
        dtype=_dtype(table),
        align="align" in table,
        lines={key: value.where for key, value in table.items()},
    )


def _names(table: Mapping[str, Node], key: str) -> tuple[str, ...]:
    if key not in table:
        return ()
    names = [one.text(f"an entry of `{key}`") for one in table[key].sequence(f"`{key}`")]
    for name in names:
        if names.count(name) > 1:
            raise table[key].error(f"`{key}` has {name!r} twice")
    return tuple(names)


def _integer(table: Mapping[str, Node], key: str, least: int, most: int) -> int | None:
    if key not in table:
        return None
    value = table[key].value
    if type(value) is not int or not least <= value <= most:
        raise table[key].error(
            f"`{key}` must be a whole number from {least} to {most}, not {table[key].kind}"
        )
    return value


def _number(table: Mapping[str, Node], key: str, most: float = math.inf) -> float | None:
    if key not in table:
        return None
    value = table[key].value
    with contextlib.suppress(TypeError, ValueError):
        value = value if isinstance(value, bool) else float(value)  # YAML has 1e-3 as a text
    if type(value) is not float or not 0 < value <= most or value == math.inf:
        bound = f"above 0 and at most {most:g}" if most < math.inf else "above 0"
        raise table[key].error(f"`{key}` must be a number {bound}, not {table[key].kind}")
    return value


def _dtype(table: Mapping[str, Node]) -> str:
    if "dtype" not in table:
        return "F32"
    code = dtype_code(table["dtype"].text("dtype"), table["dtype"].where)
    if code not in ("F32", "F16", "BF16"):
        raise table["dtype"].error(
            f"factors are saved as float32, float16 or bfloat16, not {DTYPES[code].name}"
        )
    return code
