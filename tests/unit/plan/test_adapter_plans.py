"""Plans of LoRA adapters: which modules, in which jobs, and what is told of what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.adapter_cases import factors, write_adapter
from helpers.models import llama, llama_shapes, random_tensors, save_model
from shardmerge.base.errors import UserError
from shardmerge.plan.adapter_description import load_adapter, load_factor_spec
from shardmerge.plan.decide import load_plan
from shardmerge.plan.plan import Plan
from shardmerge.plan.planner import make_plan
from shardmerge.recipe.recipe import load_recipe
from shardmerge.recipe.settings import load_settings
from shardmerge.report.explain import explain
from shardmerge.report.plan_view import plan_text
from shardmerge.report.terminal import Terminal
from shardmerge.sources.lock import read_lock


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    llama(Path("base"), 0, files=2)
    llama(Path("tuned"), 1, files=3)


def plan(*others: dict[str, Any], config: dict[str, Any] | None = None, **keys: Any) -> Plan:
    asked = {"name": "out", "extract_lora": {"model": "tuned", "base_model": "base"} | keys}
    Path("r.yaml").write_text("\n---\n".join(map(json.dumps, [*others, asked])))
    settings = load_settings({"recipes": ["r.yaml"], **(config or {})})
    return load_plan(settings, say=lambda line: None)


def modules(found: Plan) -> list[str]:
    description = load_adapter(found.adapters["out"].digest)
    return [m.name for digest in description.factors for m in load_factor_spec(digest).modules]


def test_all_matrices_of_the_layers() -> None:
    found = plan(rank=4)
    assert len(modules(found)) == 21
    assert not any("norm" in name or "embed" in name or "head" in name for name in modules(found))
    assert not found.builds
    assert len(found.adapters["out"].updates) == 2


@pytest.mark.parametrize("keys", [{"align": "knots"}, {"rank": 4}])
def test_modules_that_no_merged_adapter_changes(keys: dict[str, Any]) -> None:
    """A method such as `ties` makes the base of the base: there is no update, and none is made."""
    shapes = llama_shapes(3)
    for name, last in (("one", ("q_proj", "v_proj")), ("two", ("q_proj",))):
        adapted = {
            tensor.removesuffix(".weight"): shape
            for tensor, shape in shapes.items()
            if tensor.removesuffix(".weight").endswith(last)
        }
        write_adapter(Path(name), factors(adapted, rank=2, seed=1), r=2)
    merge = {
        "name": "both",
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": f"base+{name}", "parameters": {"weight": 0.5, "density": 0.5}}
            for name in ("one", "two")
        ],
    }
    names = modules(plan(merge, model="both", **keys))
    wanted = {f"model.layers.{i}.self_attn.{m}_proj" for i in range(3) for m in "qv"}
    assert set(names) == wanted


def test_a_plan_is_read_as_it_was_written() -> None:
    found = plan(rank=4)
    assert Plan.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_modules_and_exclusions_are_ends_of_names() -> None:
    found = plan(modules=["q_proj", "layers.1.mlp.up_proj"], exclude=["layers.0.self_attn.q_proj"])
    names = ["layers.1.self_attn.q_proj", "layers.1.mlp.up_proj", "layers.2.self_attn.q_proj"]
    assert modules(found) == [f"model.{name}" for name in names]


def test_what_is_left_out_is_told() -> None:
    description = load_adapter(plan(modules_to_save=["norm"]).adapters["out"].digest)
    assert "model.embed_tokens.weight" in description.left
    assert "model.norm.weight" not in description.left


def test_jobs_are_named_by_what_they_make() -> None:
    first = plan(rank=4).adapters["out"]
    again = plan(rank=5).adapters["out"]
    assert [job.digest for job in first.updates] == [job.digest for job in again.updates]
    assert not {job.digest for job in first.factors} & {job.digest for job in again.factors}


def test_numerics_of_merges_change_no_adapter() -> None:
    first = plan(rank=4).adapters["out"]
    assert plan(rank=4, config={"numerics": "mergekit-0.1.5"}).adapters["out"] == first


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"modules": ["qproj"]}, "`modules` names 'qproj', but no module of 'base' ends so"),
        ({"exclude": ["proj"]}, "`exclude` names 'proj', but no module"),
        ({"modules_to_save": ["nrom"]}, "`modules_to_save` names 'nrom', but no module"),
        ({"modules": ["norm"]}, "'model.norm' is no matrix, but [16]"),
        ({"decomposition": "concatenate"}, "is no sum of LoRA adapters"),
    ],
)
def test_what_there_is_not(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(**keys)
    assert message in caught.value.message
    assert caught.value.where == "r.yaml:1"


def test_a_matrix_of_another_shape() -> None:
    save_model(Path("tuned"), random_tensors(llama_shapes(3, inter=32), 1))
    for file in Path("tuned").glob("model-*"):
        file.unlink()
    Path("tuned/model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"is \[16, 32\], but the base's is \[16, 24\]"):
        plan()


def test_models_that_are_equal() -> None:
    llama(Path("tuned"), 0, files=3)
    merge = {
        "name": "same",
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "tuned", "parameters": {"weight": 0}}],
    }
    with pytest.raises(UserError, match="no tensor differs between 'same' and 'base'"):
        plan(merge, model="same")


def test_adapters_stay_factors() -> None:
    shapes = {n.removesuffix(".weight"): s for n, s in llama_shapes(3).items() if "q_proj" in n}
    write_adapter(Path("lora"), factors(shapes))
    found = plan(model="base+lora", rank=2)
    specs = map(load_factor_spec, load_adapter(found.adapters["out"].digest).factors)
    assert [m.products for spec in specs for m in spec.modules] == [1, 1, 1]
    # a rank 3 of 16 x 16: less is written than the whole
    written = sum(job.bytes_written for job in found.adapters["out"].updates)
    assert written == 3 * 2 * 3 * 16 * 4


def test_plan_and_explain_show_what_is_made() -> None:
    found = plan(rank=4, energy=0.9, modules_to_save=["norm"])
    text = plan_text(found, Terminal(80, False, False))
    assert "21 modules, exact, rank 4 at most, 0.9 of the energy" in text
    assert "left out    8 tensors that differ: embed_tokens" in text
    terms = explain("r.yaml", {}).models["out"].cells["q_proj", 0]
    assert {label: spread.mean for label, spread in terms.items()} == {"tuned": 1.0, "base": -1.0}


def test_no_sweep_makes_adapters() -> None:
    plan(rank=4)
    recipe = replace(load_recipe("r.yaml"), build="trial-1")
    lock = read_lock(Path("r.lock.json"))
    settings = load_settings({"recipes": ["r.yaml"]})
    with pytest.raises(UserError, match="the trials of a sweep are models"):
        make_plan([(recipe, lock)], settings, lambda *place: "/".join(map(str, place[::2])))
