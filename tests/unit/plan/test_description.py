"""A build's description: typed, its JSON as before, and a damaged one told in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.built_model import RECIPE, SOURCES
from helpers.models import llama, llama_shapes, random_tensors, save_model
from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.plan.decide import load_plan
from shardmerge.plan.description import BuildDescription, load_description
from shardmerge.plan.files import description_path
from shardmerge.recipe.settings import load_settings


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of a build that is planned in the working directory."""
    monkeypatch.chdir(tmp_path)
    for seed, source in enumerate(SOURCES):
        llama(Path("models", source), seed)
    Path("recipe.yaml").write_text(RECIPE)
    return planned()


def planned() -> str:
    folders = {source: f"models/{source}" for source in SOURCES}
    settings = load_settings({"recipes": ["recipe.yaml"], "sources": folders})
    plan = load_plan(settings, say=lambda line: None)
    return list(plan.builds.values())[-1].digest


class TestJson:
    def test_what_is_read_is_what_was_written(self, name: str) -> None:
        text = description_path(name).read_text()
        found = load_description(name)
        assert json.dumps(found.to_json()) == text
        assert found.digest == name == digest(json.loads(text))
        assert BuildDescription.from_json(found.to_json(), "x") == found

    def test_what_has_its_usual_value_is_not_written(self, name: str) -> None:
        data = load_description(name).to_json()
        assert not {"seeds", "allow_nonfinite"} & set(data)
        assert all("repo" not in source for source in data["sources"].values())
        changed = BuildDescription.from_json(data | {"allow_nonfinite": True}, "x")
        assert changed.to_json() == data | {"allow_nonfinite": True}


BROKEN: dict[str, Any] = {
    "name": 3,
    "recipe": {"file": "r.yaml"},
    "stages": [{"name": "a", "method": "linear", "text": None}],
    "numerics": "float8",
    "dtype": [],
    "config": [],
    "tokens": {"source": "a", "made": "tokenizer.json", "read": []},
    "files": {"config.json": 1},
    "sources": {"a": {"kind": ["hub"], "files": {}}},
    "shards": [{"file": "a", "digest": "b", "tensors": {"w": ["F16", [-1]]}}],
    "coefficients": {"w": [["a", float("inf")]]},
    "seeds": {"a": [1.5]},
    "allow_nonfinite": 1,
}


class TestDamage:
    @pytest.mark.parametrize("key", BROKEN)
    def test_a_wrong_value_is_named(self, name: str, key: str) -> None:
        data = load_description(name).to_json() | {key: BROKEN[key]}
        with pytest.raises(UserError, match=f"is damaged: it has no right {key!r}"):
            BuildDescription.from_json(data, "x")

    def test_a_missing_one_too(self, name: str) -> None:
        data = load_description(name).to_json()
        del data["shards"]
        with pytest.raises(UserError, match="it lacks 'shards'"):
            BuildDescription.from_json(data, "x")
        with pytest.raises(UserError, match="no object"):
            BuildDescription.from_json([], "x")

    def test_of_the_hub_without_a_commit(self, name: str) -> None:
        sources = {"a": {"kind": "hub", "repo": "o/m", "files": {}}}
        with pytest.raises(UserError, match="nothing pins it"):
            BuildDescription.from_json(load_description(name).to_json() | {"sources": sources}, "x")

    def test_a_file_of_another_form_is_made_anew(self, name: str) -> None:
        """Its digest is right, and so is the list that names it: only its form is not."""
        path = description_path(name)
        text = path.read_text()
        path.write_text("{}")
        with pytest.raises(UserError, match="is damaged"):
            load_description(name)
        assert planned() == name
        assert path.read_text() == text


@pytest.mark.parametrize(
    ("types", "told"),
    [(("float16", "bfloat16"), "float32"), (("bfloat16", "bfloat16"), "bfloat16")],
)
def test_the_type_is_the_one_that_is_saved(
    types: tuple[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe without a type saves what its models have in common, whatever config.json says."""
    monkeypatch.chdir(tmp_path)
    for seed, (source, dtype) in enumerate(zip("ab", types, strict=True)):
        shapes = llama_shapes(2)
        save_model(Path(source), random_tensors(shapes, seed, getattr(torch, dtype)))
    Path("recipe.yaml").write_text(
        "merge_method: linear\nmodels: [{model: ./a}, {model: ./b}]\nparameters: {weight: 0.5}\n"
    )
    plan = load_plan(load_settings({"recipes": ["recipe.yaml"]}), say=lambda line: None)
    (build,) = plan.builds.values()
    assert load_description(build.digest).dtype == told
