"""Documents that ask for a LoRA adapter: a model's difference from its base, of low rank."""

from __future__ import annotations

import math
from collections.abc import Mapping

from shardmerge.base.dtypes import DTYPES, dtype_code
from shardmerge.base.errors import did_you_mean
from shardmerge.recipe.extraction import DECOMPOSITIONS, EXTRACT, Extraction
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.slices import parse_model
from shardmerge.recipe.stage import Input, Module, Slice, Stage

KEYS = (
    *("model", "base_model", "rank", "energy", "singular_value_cut", "alpha", "modules"),
    *("exclude", "modules_to_save", "decomposition", "seed", "dtype"),
)
#: As mergekit-extract-lora calls its options.
_OTHER_NAMES = {
    "max_rank": "it is called `rank` here",
    "sv_epsilon": "it is called `singular_value_cut` here",
    "embed_lora": "list the embedding among `modules`",
    "save_module": "it is called `modules_to_save` here",
    "lora_alpha": "it is called `alpha` here",
    "target_modules": "it is called `modules` here",
}
#: As mergekit-extract-lora has it.
DEFAULT_RANK = 128
_LARGEST_RANK = 1 << 16


def parse_extraction(node: Node, text: str, default_name: str) -> Stage:
    """Return the stage of a document with ``extract_lora``; arguments as of ``parse_stage``.

    Raises:
        UserError: With file and line, for any mistake that shows without the models.
    """
    merging = dict.fromkeys(
        ("merge_method", "models", "slices", "parameters", "base_model", "dtype"),
        "an adapter has its keys under `extract_lora`",
    )
    if isinstance(node.value, dict) and "merge_method" in node.value:
        raise node.error(
            "the document has `merge_method` and `extract_lora`",
            "Merge in a document of its own, and give its name as `model` of `extract_lora`.",
        )
    document = node.mapping("a document of an adapter", ("name", EXTRACT), merging)
    inner = document[EXTRACT]
    table = inner.mapping(f"`{EXTRACT}`", KEYS, _OTHER_NAMES)
    table = {key: value for key, value in table.items() if value.value is not None}
    for key in ("model", "base_model"):
        if key not in table:
            raise inner.error(f"`{EXTRACT}` has no `{key}`", f"Write `{key}: owner/name`.")
    model, base = parse_model(table["model"]), parse_model(table["base_model"])
    if model == base:
        raise table["model"].error("`model` and `base_model` are the same: nothing is extracted")
    return Stage(
        name=_name(document, default_name),
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


def _name(document: Mapping[str, Node], default: str) -> str:
    given = document.get("name")
    return default if given is None or given.value is None else given.text("name")


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
    if type(value) not in (int, float) or not 0 < value <= most:
        bound = f"above 0 and at most {most:g}" if most < math.inf else "above 0"
        raise table[key].error(f"`{key}` must be a number {bound}, not {table[key].kind}")
    return float(value)


def _dtype(table: Mapping[str, Node]) -> str:
    if "dtype" not in table:
        return "F32"
    code = dtype_code(table["dtype"].text("dtype"), table["dtype"].where)
    if code not in ("F32", "F16", "BF16"):
        raise table["dtype"].error(
            f"factors are saved as float32, float16 or bfloat16, not {DTYPES[code].name}"
        )
    return code
