"""What `approximate` in a tokenizer block says: how rows of tokens that a model lacks are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shardmerge.base.errors import did_you_mean
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.runs import whole_number
from shardmerge.recipe.slices import parse_model
from shardmerge.recipe.stage import Approximation

#: Rows that one is made of at most.
MAX_K = 4096
#: Where rows of other tokens may be taken: nowhere, in one of the two tensors, or in both.
_TENSORS = {"no": (), "embed": ("embed",), "lm_head": ("lm_head",), "yes": ("embed", "lm_head")}
_COMMON = ("method", "prefix_match", "byte_match", "new_vocab_scale", "new_vocab_noise", "seed")
_NEIGHBOURS = ("distance_proportional", "barycentric", "least_squares")


@dataclass(frozen=True)
class _Method:
    """The keys of a method beside the common ones, the words of its weighting, if it draws."""

    keys: tuple[str, ...] = ()
    weighting: str = ""
    words: tuple[str, ...] = field(default=("",))
    draws: bool = False


_METHODS: Mapping[str, _Method] = {
    "omp": _Method(("k", "donor", "magikarp")),
    "common_interpolation": _Method(
        ("k", "donor", "cosine_similarity", "weight_scheme", "magikarp"),
        "weight_scheme",
        _NEIGHBOURS,
    ),
    "subword": _Method(
        ("subword_method",), "subword_method", ("mean", "sum", "weighted_mean", "first_last")
    ),
    "landmark_pca": _Method(("donor",)),
    "mean": _Method(),
    "zero": _Method(),
    "randn": _Method(draws=True),
    "john_hewitt": _Method(("k",), draws=True),
}


def parse_approximation(node: Node) -> Approximation:
    """Return what `approximate` says: a method's name, or a mapping.

    Raises:
        UserError: If a method or key is unknown, does not go with the method, or has a wrong value.
    """
    if isinstance(node.value, str):
        method = _word(node, "approximate", _METHODS)
        return _made({}, method, node.where)
    known = dict.fromkeys([*_COMMON, *(key for one in _METHODS.values() for key in one.keys)])
    table = node.mapping("`approximate`", tuple(known))
    table = {key: one for key, one in table.items() if one.value is not None}
    method = _word(table["method"], "method", _METHODS) if "method" in table else "omp"
    for key, one in table.items():
        if key not in (*_COMMON, *_METHODS[method].keys):
            users = " or ".join(f"`{name}`" for name, it in _METHODS.items() if key in it.keys)
            raise one.error(f"`{key}` goes with the method {users}, not with `{method}`")
    if "seed" in table and not (_METHODS[method].draws or "new_vocab_noise" in table):
        raise table["seed"].error(
            f"`seed` means nothing, since `{method}` draws no random numbers",
            "It goes with `randn`, `john_hewitt` and `new_vocab_noise`.",
        )
    return _made(table, method, node.where)


def _made(table: Mapping[str, Node], method: str, where: str) -> Approximation:
    how = _METHODS[method]
    weighting = table.get(how.weighting)
    return Approximation(
        method=method,
        donor=parse_model(table["donor"]) if "donor" in table else None,
        k=_count(table["k"]) if "k" in table else None,
        cosine=_truth(table, "cosine_similarity"),
        weighting=_word(weighting, how.weighting, how.words) if weighting else how.words[0],
        prefix=_tensors(table.get("prefix_match"), "prefix_match"),
        byte=_tensors(table.get("byte_match"), "byte_match"),
        scale=_size(table, "new_vocab_scale", 1.0),
        noise=_size(table, "new_vocab_noise", 0.0),
        seed=whole_number(table.get("seed"), "`seed`", 0, least=0),
        magikarp=_truth(table, "magikarp"),
        where=where,
    )


def _word(node: Node, key: str, known: Iterable[str]) -> str:
    words = list(known)
    if not isinstance(node.value, str) or node.value not in words:
        listed = ", ".join(f"`{word}`" for word in words)
        hint = did_you_mean(node.value, words) if isinstance(node.value, str) else None
        raise node.error(f"`{key}` must be one of {listed}", hint)
    return node.value


def _count(node: Node) -> int:
    if type(node.value) is not int or not 0 < node.value <= MAX_K:
        raise node.error(f"`k` must be a whole number from 1 to {MAX_K}")
    return node.value


def _truth(table: Mapping[str, Node], key: str) -> bool:
    if key not in table:
        return False
    if not isinstance(table[key].value, bool):
        raise table[key].error(f"`{key}` must be true or false")
    return table[key].value


def _tensors(node: Node | None, key: str) -> tuple[str, ...]:
    if node is None:
        return ()
    if isinstance(node.value, bool):  # YAML's yes and no
        return _TENSORS["yes" if node.value else "no"]
    return _TENSORS[_word(node, key, _TENSORS)]


def _size(table: Mapping[str, Node], key: str, default: float) -> float:
    if key not in table:
        return default
    value = table[key].value
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value <= 1e6:
        raise table[key].error(f"`{key}` must be a number above 0, of a million at most")
    return float(value)
