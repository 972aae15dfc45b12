"""Documents about experts: what they mean, and the line of every mistake."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.recipe.recipe import parse_recipe

_WHOLE = """\
name: mix
base_model: org/base
gate_mode: cheap_embed
experts_per_token: 1
dtype: bfloat16
architecture: qwen
experts:
  - source_model: org/a@main
    positive_prompts: ["one", "two"]
    negative_prompts: ["three"]
    noise_scale: 0.1
    residual_scale: 2
  - source_model: {model: {path: org/b}}
    positive_prompts: ["four"]
shared_experts:
  - source_model: org/c
    positive_prompts: ["five"]
"""


def test_every_key_is_read() -> None:
    recipe = parse_recipe(_WHOLE, "r.yaml")
    stage = recipe.stages["mix"]
    assert [str(item.model) for item in stage.inputs] == ["org/a@main", "org/b", "org/c"]
    assert str(stage.reference_model) == "org/base"
    assert stage.dtype == "BF16"
    made = stage.mixture
    first, second = made.experts
    assert (first.positive, first.negative) == (("one", "two"), ("three",))
    assert (first.noise, first.residual) == (0.1, 2.0)
    assert (second.noise, second.residual) == (None, None)
    assert made.shared[0].positive == ("five",)
    assert (made.gate_mode, made.experts_per_token, made.architecture) == ("cheap_embed", 1, "qwen")
    assert recipe.warnings == ()
    assert recipe.prompts == {"org/base": ("one", "two", "three", "four", "five")}


def test_what_is_not_given_is_as_in_mergekit() -> None:
    text = "base_model: b\nshared_experts: []\nexperts:\n"
    text += "- {source_model: a, positive_prompts: [x]}\n" * 2
    made = parse_recipe(text, "r.yaml").stages["r"].mixture
    assert (made.gate_mode, made.experts_per_token, made.shared) == ("hidden", 2, ())
    assert made.architecture is None


def test_experts_may_be_documents_and_follow_their_new_names() -> None:
    text = (
        "name: a b\nmerge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}]\n---\n"
        "name: mix\nbase_model: a b\ngate_mode: random\n"
        "experts: [{source_model: a b}, {source_model: y}]\n"
    )
    recipe = parse_recipe(text, "r.yaml")
    stage = recipe.stages["mix"]
    assert [str(item.model) for item in stage.inputs] == ["a-b", "y"]
    assert str(stage.base_model) == "a-b"
    assert recipe.final == ("mix",)
    assert recipe.needed("mix") == ["a-b", "mix"]


def test_equal_prompts_are_told() -> None:
    text = "base_model: b\nexperts:\n" + "".join(
        f"- {{source_model: {name}, positive_prompts: [x]}}\n" for name in "cd"
    )
    (found,) = parse_recipe(text, "r.yaml").warnings
    assert (found.check, found.where) == ("equal-prompts", "r.yaml:2")


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (["[x, y]", "[z]", "[y, x]"], [(5, "experts 0 and 2 have the same prompts")]),
        (["[x], negative_prompts: [x]", "[z]"], [(3, "expert 0 has the same positive and negat")]),
        (["[x]", "[x], negative_prompts: [z]", "[z]"], []),
    ],
)
def test_some_equal_prompts_are_told(prompts: list[str], told: list[tuple[int, str]]) -> None:
    text = "base_model: b\nexperts:\n" + "".join(
        f"- {{source_model: m{n}, positive_prompts: {text}}}\n" for n, text in enumerate(prompts)
    )
    found = parse_recipe(text, "r.yaml").warnings
    assert [one.where for one in found] == [f"r.yaml:{line}" for line, _ in told]
    assert all(start in one.message for one, (_, start) in zip(found, told, strict=True))
    assert {one.check for one in found} <= {"equal-prompts"}
    random = parse_recipe(f"gate_mode: random\n{text}", "r.yaml")
    assert not random.warnings


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("experts: []\n", 1, "no `base_model`"),
        ("base_model: b\nexperts:\n", 1, "`experts` is empty"),
        ("base_model: b\nexperts: []\n", 2, "lists 0 models"),
        ("base_model: b\nexperts:\n- a\n", 3, "is only a name"),
        ("base_model: b\nexperts:\n- positive_prompts: [x]\n", 3, "has no `source_model`"),
        ("base_model: b\nexperts:\n- source_model: a\n", 3, "no `positive_prompts`"),
        (
            "base_model: b\ngate_mode: cheap\nexperts: [{source_model: a}]\n",
            2,
            "unknown gate_mode 'cheap'",
        ),
        (
            "base_model: b\ngate_mode: random\nexperts: [{source_model: a}]\n",
            3,
            "`experts_per_token` is 2, but there are 1 experts",
        ),
        (
            "base_model: b\ngate_mode: random\nexperts_per_token: 0\nexperts: [{source_model: a}]",
            3,
            "must be a whole number",
        ),
        (
            "base_model: b\nexperts:\n- source_model: a\n  positive_prompts: [x, 3]\n",
            4,
            "a prompt must be a text, not 3",
        ),
        (
            "base_model: b\nexperts:\n- source_model: a\n  positive_prompts: [x]\n"
            "  noise_scale: much\n",
            5,
            "`noise_scale` must be a number",
        ),
        (
            "base_model: b\nexperts:\n- source_model: a\n  positive_prompts: [x]\n"
            "  residual_scale: 1.0e+39\n",
            5,
            "too large for float32",
        ),
        (
            "base_model: b\nexperts:\n- source_model: a\n  postive_prompts: [x]\n",
            4,
            "unknown key 'postive_prompts'",
        ),
        (
            "base_model: b\ngate_mode: random\nexperts_per_token: 1\nexperts: [{source_model: a}]\n"
            "shared_experts:\n- {source_model: a, positive_prompts: [x]}\n- {source_model: b}\n",
            5,
            "some shared experts have",
        ),
        ("base_model: b\nexperts: [{source_model: a}]\ntake_expert: 1\n", 1, "and `take_expert`"),
        ("base_model: b\ntake_expert: -1\n", 2, "must be a whole number"),
        ("base_model: b\ntake_expert: 1\nexperts_per_token: 1\n", 3, "a dense model has no"),
        ("base_model: b\nkeep_experts: []\n", 2, "keeps no expert"),
        ("base_model: b\nkeep_experts:\n- 1\n- 1\n", 3, "expert 1 is listed twice"),
        (
            "base_model: b\nkeep_experts: [1]\nexperts_per_token: 2\n",
            3,
            "`experts_per_token` is 2, but there are 1 experts",
        ),
    ],
)
def test_mistakes_have_their_line(text: str, line: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "r.yaml")
    assert message in caught.value.message
    assert caught.value.where == f"r.yaml:{line}"


def test_keys_of_merges_are_passed_over_with_a_reason() -> None:
    text = _WHOLE + "merge_method: linear\nchat_templte: x\n"
    found: list[Any] = list(parse_recipe(text, "r.yaml").warnings)
    assert [f.check for f in found] == ["ignored-key", "ignored-key"]
    assert "experts are not merged" in found[0].message


def test_tokens_of_a_document_with_another_tokenizer_cannot_be_known() -> None:
    text = (
        "name: a\nmerge_method: linear\ntokenizer_source: union\n"
        "models: [{model: x, parameters: {weight: 1}}]\n---\n"
        "name: mix\nbase_model: a\ngate_mode: cheap_embed\nexperts_per_token: 1\n"
        "experts: [{source_model: a, positive_prompts: [x]}]\n"
    )
    with pytest.raises(UserError, match="gets a tokenizer of its own"):
        assert parse_recipe(text, "r.yaml").prompts
