"""Documents about experts: mergekit-moe's, which assemble a mixture, and those that take some out.

A mixture's experts are the stage's inputs, so that they may be other documents, as anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from shardmerge.base.errors import UserError
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.references import Reference
from shardmerge.recipe.slices import parse_dtype, parse_model
from shardmerge.recipe.stage import Expert, ExpertChoice, Input, Mixture, Module, Slice, Stage

GATE_MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random")
#: Gates that need no prompts.
RANDOM = ("random", "uniform_random")
#: Experts of a mixture at most; the largest that are known have some hundreds.
MAX_EXPERTS = 4096
#: Prompts of one expert at most.
_MOST_PROMPTS = 10_000
_COMMON = ("name", "base_model", "dtype", "experts_per_token")
_MIXTURE = (*_COMMON, "experts", "shared_experts", "gate_mode", "architecture", "seed")
_EXPERT = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")
#: What recipes for merging have, and such documents have not.
_MERGING = dict.fromkeys(
    ("merge_method", "models", "slices", "modules", "parameters"),
    "experts are not merged; merge them in documents of their own, and name these",
)
#: Keys of which one makes a document one about experts.
EXPERT_KINDS = ("experts", "take_expert", "keep_experts")


def parse_experts(node: Node, text: str, default_name: str) -> Stage:
    """Return the stage of a document about experts; arguments as of ``parse_stage``.

    Raises:
        UserError: With file and line, for any mistake that shows without the models.
    """
    given = [key for key in EXPERT_KINDS if key in node.value]
    if len(given) > 1:
        both = " and ".join(f"`{key}`" for key in given)
        raise node.error(f"the document has {both}", "Write a document for each of them.")
    known = _MIXTURE if given == ["experts"] else (*_COMMON, *given)
    table = node.mapping("a document about experts", known, _MERGING)
    table = {key: value for key, value in table.items() if value.value is not None}
    if "base_model" not in table:
        raise node.error(
            "the document has no `base_model`",
            "Give the model that everything but the experts comes from.",
        )
    base = parse_model(table["base_model"])
    if given == ["experts"]:
        return _mixture(node, table, base, text, default_name)
    item = Input(base, {}, None, table["base_model"].where)
    choice = _choice(table, node, given[0])
    return _stage("experts", node, table, base, (item,), text, default_name, choice=choice)


def _stage(
    method: str,
    node: Node,
    table: Mapping[str, Node],
    base: Reference,
    inputs: tuple[Input, ...],
    text: str,
    default_name: str,
    *,
    mixture: Mixture | None = None,
    choice: ExpertChoice | None = None,
) -> Stage:
    piece = Slice(inputs, {}, None, node.where)
    return Stage(
        name=table["name"].text("name") if "name" in table else default_name,
        method=method,
        base_model=base,
        modules=(Module(None, (piece,), {}, node.where),),
        parameters={},
        dtype=parse_dtype(table.get("dtype")),
        out_dtype=None,
        tokenizer=None,
        chat_template=None,
        text=text,
        where=node.where,
        mixture=mixture,
        choice=choice,
    )


def _mixture(
    node: Node, table: Mapping[str, Node], base: Reference, text: str, default_name: str
) -> Stage:
    if "experts" not in table:
        raise node.error("`experts` is empty", "List `source_model: MODEL` for each expert.")
    mode = table["gate_mode"].text("gate_mode") if "gate_mode" in table else "hidden"
    if mode not in GATE_MODES:
        raise table["gate_mode"].error(
            f"unknown gate_mode {mode!r}", f"Write one of {', '.join(GATE_MODES)}."
        )
    routed, experts = _experts(table["experts"], "experts", prompted=mode not in RANDOM)
    inputs, shared = list(routed), ()
    if "shared_experts" in table and table["shared_experts"].value != []:
        more, shared = _experts(table["shared_experts"], "shared_experts", prompted=False)
        inputs += more
        if len({bool(one.positive) for one in shared}) > 1:
            raise table["shared_experts"].error(
                "some shared experts have `positive_prompts` and some have none",
                "Give prompts for all of them or for none.",
            )
    per_token = _per_token(table, len(experts), 2)
    _warn_of_prompts(table["experts"], experts, mode)
    mixture = Mixture(
        experts=experts,
        shared=shared,
        gate_mode=mode,
        experts_per_token=per_token,
        architecture=table["architecture"].text("architecture")
        if "architecture" in table
        else None,
        seed=_whole(table["seed"], "seed", 0, 2**63 - 1) if "seed" in table else 0,
    )
    return _stage("mixture", node, table, base, tuple(inputs), text, default_name, mixture=mixture)


def _warn_of_prompts(node: Node, experts: tuple[Expert, ...], mode: str) -> None:
    if mode in RANDOM:
        return
    alike: dict[tuple[frozenset[str], frozenset[str]], list[int]] = {}
    for number, one in enumerate(experts):
        alike.setdefault((frozenset(one.positive), frozenset(one.negative)), []).append(number)
        if one.positive and set(one.positive) == set(one.negative):
            node.value[number].warn(
                "equal-prompts",
                f"expert {number} has the same positive and negative prompts, which leave nothing "
                "for the router to look for",
            )
    for numbers in alike.values():
        if len(numbers) == len(experts) > 1:
            node.warn(
                "equal-prompts",
                "all experts have the same prompts, so that the router cannot tell them apart; "
                "mergekit refuses this. Give each the prompts that it should get",
            )
        elif len(numbers) > 1:
            node.value[numbers[1]].warn(
                "equal-prompts",
                f"experts {', '.join(map(str, numbers[:-1]))} and {numbers[-1]} have the same "
                "prompts, so that the router cannot tell them apart",
            )


def _experts(node: Node, what: str, *, prompted: bool) -> tuple[list[Input], tuple[Expert, ...]]:
    rows = node.sequence(f"`{what}`")
    if not 0 < len(rows) <= MAX_EXPERTS:
        raise node.error(f"`{what}` lists {len(rows)} models, not 1 to {MAX_EXPERTS}")
    inputs, experts = [], []
    for row in rows:
        if isinstance(row.value, str):
            raise row.error(
                f"an entry of `{what}` is only a name", f"Write `- source_model: {row.value}`."
            )
        table = row.mapping(f"an entry of `{what}`", _EXPERT, {"model": "write `source_model`"})
        table = {key: value for key, value in table.items() if value.value is not None}
        if "source_model" not in table:
            raise row.error(f"an entry of `{what}` has no `source_model`")
        expert = Expert(
            positive=_prompts(table, "positive_prompts"),
            negative=_prompts(table, "negative_prompts"),
            noise=_number(table, "noise_scale"),
            residual=_number(table, "residual_scale"),
            where=row.where,
        )
        if prompted and not expert.positive:
            raise row.error(
                "the expert has no `positive_prompts`",
                "Write prompts that should be sent to it, or `gate_mode: random`.",
            )
        if expert.negative and not expert.positive:
            raise table["negative_prompts"].error(
                "the expert has `negative_prompts` but no `positive_prompts`"
            )
        inputs.append(Input(parse_model(table["source_model"]), {}, None, row.where))
        experts.append(expert)
    return inputs, tuple(experts)


def _prompts(table: Mapping[str, Node], key: str) -> tuple[str, ...]:
    if key not in table:
        return ()
    rows = table[key].sequence(f"`{key}`")
    if len(rows) > _MOST_PROMPTS:
        raise table[key].error(f"`{key}` lists {len(rows)} prompts; {_MOST_PROMPTS} may be")
    for row in rows:
        if not isinstance(row.value, str):
            raise row.error(f"a prompt must be a text, not {row.kind}", "Put it in quotes.")
    return tuple(row.value for row in rows)


def _number(table: Mapping[str, Node], key: str) -> float | None:
    if key not in table:
        return None
    value = table[key].value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise table[key].error(f"`{key}` must be a number, not {table[key].kind}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) < 2.0**127:
        raise table[key].error(f"`{key}` is too large for float32")
    return number


def _whole(node: Node, what: str, low: int, high: int) -> int:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bounds = f"from {low} on" if high > MAX_EXPERTS else f"from {low} to {high}"
        raise node.error(f"`{what}` must be a whole number {bounds}, not {node.kind}")
    return value


def _per_token(table: Mapping[str, Node], count: int, default: int) -> int:
    node = table.get("experts_per_token")
    value = default if node is None else _whole(node, "experts_per_token", 1, MAX_EXPERTS)
    if value > count:
        where = node or table["experts"]
        raise where.error(
            f"`experts_per_token` is {value}, but there are {count} experts",
            f"Write `experts_per_token: {count}` or less, or more experts.",
        )
    return value


def _choice(table: Mapping[str, Node], node: Node, key: str) -> ExpertChoice:
    if key not in table:
        raise node.error(f"`{key}` names no expert", "Experts are counted from 0.")
    numbers, where = table[key], table[key].where
    if key == "take_expert":
        if "experts_per_token" in table:
            raise table["experts_per_token"].error("a dense model has no `experts_per_token`")
        return ExpertChoice((_whole(numbers, key, 0, MAX_EXPERTS - 1),), True, None, where)
    rows = numbers.sequence("`keep_experts`")
    found = tuple(_whole(row, "keep_experts", 0, MAX_EXPERTS - 1) for row in rows)
    if not found:
        raise numbers.error("`keep_experts` keeps no expert")
    for number, row in zip(found, rows, strict=True):
        if found.count(number) > 1:
            raise row.error(f"expert {number} is listed twice")
    per_token = table.get("experts_per_token")
    if per_token is None:
        return ExpertChoice(found, False, None, where)
    return ExpertChoice(found, False, _per_token(table, len(found), 1), where)


def check_choice(choice: ExpertChoice, count: int, per_token: int, model: str) -> None:
    """Check numbers of experts against the mixture that they are taken from.

    Args:
        choice: The experts.
        count: How many the mixture has.
        per_token: How many of them a token is sent to afterwards.
        model: The mixture's name.

    Raises:
        UserError: If it lacks one of them, or too few are left.
    """
    for number in choice.experts:
        if number >= count:
            raise UserError(
                f"{model!r} has {count} experts, and no expert {number}",
                choice.where,
                f"Experts are counted from 0: the last one is {count - 1}.",
            )
    if not choice.dense and per_token > len(choice.experts):
        raise UserError(
            f"tokens of {model!r} are sent to {per_token} experts, but {len(choice.experts)} "
            "are kept",
            choice.where,
            f"Keep more, or write `experts_per_token: {len(choice.experts)}` or less.",
        )
