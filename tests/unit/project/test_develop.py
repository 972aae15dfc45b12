"""What docs/develop/tasks.md says is done here as it is written."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import kernel_cases
from helpers.engine_cases import Models, call_of
from helpers.models import llama
from helpers.planned import described, slices
from shardmerge.algebra import expression as ex
from shardmerge.algebra.rows import format_rows
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32
from shardmerge.check.shard import check_shard
from shardmerge.compose.architecture import config_keys
from shardmerge.compose.composer import Composer
from shardmerge.engine.build import build_shard
from shardmerge.methods import registry
from shardmerge.methods.registry import kernel_of
from shardmerge.plan import making, recipe_checks
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import load_spec
from shardmerge.recipe import settings
from shardmerge.recipe.settings import SCHEMA, load_settings
from tools.docs.methods import methods_markdown

REPO = Path(__file__).parents[3]
PAGE = (REPO / "docs" / "develop" / "tasks.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def code(title: str) -> str:
    """Return the block of code of a section."""
    (found,) = re.findall(r"^```\w+\n(.*?)^```", section(title), re.DOTALL | re.MULTILINE)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestMethod:
    @pytest.fixture(autouse=True)
    def declared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
        exec(compile(code("Add a merge method"), "tasks.md", "exec"), {})

    def test_a_recipe_merges_with_it(self, folder: Path) -> None:
        for seed, name in enumerate("ab"):
            llama(Path(name), seed=seed)
        models = [{"model": name} for name in "ab"]
        recipe = {"name": "out", "merge_method": "clipped", "base_model": "a", "models": models}
        found, warnings = described(recipe | {"parameters": {"limit": 0.01}, "dtype": "float16"})
        assert found["stages"][0]["method"] == "clipped"
        assert warnings == []
        with pytest.raises(UserError, match="'limit'"):
            described(recipe | {"parameters": {"limit": -1}})

    def test_helpers_engine_and_check_know_it(self, folder: Path) -> None:
        group = kernel_cases.ordinary("clipped", (5, 40), dtype=torch.float32)
        base, other = group.tensors
        limit = group.parameters["limit"]
        expected = base + (other - base).clamp(-limit, limit)
        assert torch.equal(kernel_of("clipped", FLOAT32)[0](group), expected)
        models = Models(folder, {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)})
        call = call_of("clipped", group, [models.source(f"m{i}") for i in range(2)])
        spec = models.spec({"w": ("F32", call)})
        models.build(spec)
        assert torch.equal(models.load()["w"], expected)
        check_shard(spec, folder / "out.safetensors", models.paths, [])

    def test_documentation_has_it(self) -> None:
        text = methods_markdown().partition("\n## clipped\n")[2]
        assert "`base + min(max(x - base, -limit), limit)`" in text
        assert "Not in mergekit 0.1.5: `clipped`, " in methods_markdown()

    def test_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="registered twice"):
            exec(compile(code("Add a merge method"), "tasks.md", "exec"), {})


def test_architecture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate("ab"):
        path = llama(Path(name), seed=seed, layers=4) / "config.json"
        kinds = [f"{name}{layer}" for layer in range(4)]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_kinds": kinds}))
    recipe = slices(("a", 0, 2), ("b", 2, 3))
    assert "attention_kinds" not in described(recipe)[0]["config"]
    names: dict[str, Any] = {"PER_LAYER": config_keys.PER_LAYER}
    exec(code("Add an architecture's list of layers"), names)
    monkeypatch.setattr(config_keys, "PER_LAYER", names["PER_LAYER"])
    assert described(recipe | {"name": "new"})[0]["config"]["attention_kinds"] == ["a0", "a1", "b2"]


def test_configuration_key(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = copy.deepcopy(json.loads(SCHEMA.read_text(encoding="utf-8")))
    schema["properties"] |= json.loads(code("Add a key of the configuration"))
    monkeypatch.setattr(settings, "_schema", lambda: schema)
    assert load_settings({})["audit"] is False
    assert load_settings({"audit": "true"}).planned()["audit"] is True
    with pytest.raises(UserError, match="audit"):
        load_settings({"audit": "perhaps"})
    with pytest.raises(UserError, match=r"Did you mean 'audit'"):
        load_settings({"audti": True})


def test_made_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose norms are the largest value of another tensor: planned, made and merged."""
    monkeypatch.setitem(making.MADE_KINDS, "largest", None)  # taken out again at the end
    names: dict[str, Any] = {}
    exec(code("Add a kind of made source"), names)
    llama(Path("a"), seed=0)
    tensor, norm = "lm_head.weight", "model.norm.weight"

    def outputs(self: Composer, stage: str) -> list[OutputTensor]:
        found = self.note_made(names["largest"]("a", tensor, self.lock)).tensor("largest")
        return [
            replace(t, expression=ex.Rows(found, format_rows([0] * t.shape[0])))
            if t.name == norm
            else t
            for t in before(self, stage)
        ]

    before = Composer.outputs
    monkeypatch.setattr(Composer, "outputs", outputs)
    recipe = {"name": "out", "merge_method": "passthrough", "models": [{"model": "a"}]}
    Path("recipe.yaml").write_text(json.dumps(recipe | {"dtype": "float32"}))
    plan = load_plan(load_settings({"recipes": ["recipe.yaml"]}), say=lambda line: None)
    for job in plan.made.values():
        told = making.load_made_spec(job)
        making.MADE_KINDS[job.kind].make(making.MakeTask(job, told, Path(job.output)))
    (shard,) = plan.shards
    spec, output = load_spec(shard.digest), Path(shard.output)
    output.parent.mkdir(parents=True)
    build_shard(
        spec, dict(zip(spec.required_files(), map(Path, shard.sources), strict=True)), output
    )
    (made,) = Path("results/measured").iterdir()
    largest = load_file("a/model.safetensors")[tensor].float().max()
    assert load_file(made)["largest"].tolist() == [largest]
    assert (load_file(output)[norm] == largest).all()


def test_recipe_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = dict(vars(recipe_checks))
    exec(code("Add a recipe check"), names)
    checks = (*recipe_checks._CHECKS, names["_many_models"])
    monkeypatch.setattr(recipe_checks, "_CHECKS", checks)
    for seed, name in enumerate("abc"):
        llama(Path(name), seed=seed)
    models = [{"model": name, "parameters": {"weight": 1}} for name in "abc"]
    recipe = {"name": "out", "merge_method": "linear", "models": models, "dtype": "float16"}
    (told,) = described(recipe)[1]
    assert told.endswith("out: blends 3 models [many-models]")
    assert described(recipe | {"models": models[:2]})[1] == []


def test_export_has_the_parts_that_it_names() -> None:
    rule = (REPO / "rules/package.smk").read_text().partition("rule write_index:")[2]
    rule = rule.partition("\nrule ")[0]
    assert '"$SCRIPTS"/write_index.py' in rule
    assert "build=lambda w: build(w).digest" in rule
    script = (REPO / "scripts/write_index.py").read_text()
    assert "shardmerge.package.index" in script and len(script.splitlines()) < 40
    assert "package_files" in (REPO / "rules/common.smk").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+[\w.]*)`", PAGE))))
def test_files_exist(path: str) -> None:
    roots = (REPO, REPO / "scripts" / "shardmerge")
    assert any((root / path).exists() for root in roots), path
