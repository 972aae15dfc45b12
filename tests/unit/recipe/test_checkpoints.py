"""Documents that merge checkpoints of any kind: what makes one, and what it cannot ask for."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from shardmerge.base.errors import UserError
from shardmerge.recipe.recipe import Recipe, parse_recipe

A, B = "a.safetensors", "b.safetensors"


def parsed(*documents: dict[str, Any]) -> Recipe:
    return parse_recipe(yaml.safe_dump_all(documents, sort_keys=False), "r.yaml")


def document(*models: str, **more: Any) -> dict[str, Any]:
    rows = [{"model": model, "parameters": {"weight": 1}} for model in models]
    return {"merge_method": "linear", "models": rows} | more


def refused(*documents: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parsed(*documents)
    return str(caught.value)


def roles(recipe: Recipe) -> dict[str, str]:
    return {reference.model: role for reference, role in recipe.named}


@pytest.mark.parametrize("file", ["a.safetensors", "x/y.CKPT", "o/m:unet/a.safetensors@v1", "a.pt"])
def test_a_file_makes_one(file: str) -> None:
    recipe = parsed(document(file, "folder"))
    assert recipe.stages["r"].tensors == "same"
    assert set(roles(recipe).values()) == {"checkpoint"}


@pytest.mark.parametrize("mode", ["same", "union", "intersection"])
def test_the_key_makes_one(mode: str) -> None:
    recipe = parsed(document("o/m", "folder", tensors=mode))
    assert recipe.stages["r"].tensors == mode
    assert roles(recipe) == {"o/m": "checkpoint", "folder": "checkpoint"}


def test_models_are_none() -> None:
    recipe = parsed(document("o/m", "folder"))
    assert recipe.stages["r"].tensors is None
    assert roles(recipe) == {"o/m": "model", "folder": "model"}


def test_a_wrong_mode() -> None:
    told = refused(document(A, B, tensors="unoin"))
    assert "`tensors` must be `same`, `union` or `intersection`" in told
    assert "Did you mean 'union'?" in told


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokenizer_source", "union"), ("chat_template", "auto"), ("tokenizer", {"source": "base"})],
)
def test_what_only_models_have(key: str, value: Any) -> None:
    told = refused(document(A, B) | {key: value})
    assert f"r.yaml:{told.split(':')[1]}" in told
    assert f"`{key}` does not go with a document that merges the file 'a.safetensors'" in told


def test_slices() -> None:
    slices = [{"sources": [{"model": "m", "layer_range": [0, 2]}]}]
    told = refused({"merge_method": "passthrough", "slices": slices, "tensors": "same"})
    assert "`slices` does not go with a document that has `tensors`" in told


@pytest.mark.parametrize("model", ["a.safetensors+lab/lora", "lora+v2.safetensors"])
def test_an_adapter(model: str) -> None:
    told = refused(document(model, B))
    assert "adds an adapter" in told and "If `+` is part of a file's name" in told


def test_a_gradient() -> None:
    models = [{"model": A, "parameters": {"weight": [0, 0.5, 1]}}, {"model": B}]
    told = refused(document() | {"models": models})
    assert "parameter 'weight' has a gradient over layers" in told
    assert "mergekit-pytorch takes the first one, 0" in told


def test_a_gradient_of_one_value_is_that_value() -> None:
    models = [{"model": name, "parameters": {"weight": [0.5, 0.5]}} for name in (A, B)]
    assert parsed(document() | {"models": models}).stages["r"].tensors == "same"


def test_documents_read_each_other() -> None:
    first = document(A, B, name="first")
    second = document("first", A, name="second", tensors="union")
    assert parsed(first, second).final == ("second",)
    assert "Write `tensors: same` into both" in refused(first, document("first", "o/m", name="x"))


def test_one_source_is_not_of_two_kinds() -> None:
    told = refused(document("m", A, name="one"), document("m", "n", name="two"))
    assert "'m' is a checkpoint for one document" in told
