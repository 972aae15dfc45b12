"""Plans of methods that measure whole models: jobs, identities, what is refused and how."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.models import llama, llama_shapes
from helpers.planned import described
from shardmerge.algebra import expression as ex
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.base.text import human_bytes
from shardmerge.compose.measured_tensors import _ROW, _width
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import load_spec
from shardmerge.plan.making import load_made_spec
from shardmerge.plan.plan import Plan, read_plan
from shardmerge.recipe.settings import load_settings
from shardmerge.report.plan_facts import Amount, plan_totals
from shardmerge.report.plan_view import plan_text
from shardmerge.report.terminal import Terminal

_TEXT = "some words. " * 100
_LAYERS = 2
#: Of the model.
_ELEMENTS = sum(math.prod(shape) for shape in llama_shapes(layers=_LAYERS).values())
_PLAIN = Terminal(width=200)


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(["base", "a", "b"]):
        llama(Path(name), seed, layers=_LAYERS)
    Path("t.txt").write_text(_TEXT)


def document(method: str = "regmean", **parameters: Any) -> dict[str, Any]:
    models = [{"model": "a"}, {"model": "b"}]
    found = {"name": "out", "merge_method": method, "models": models, "dtype": "float32"}
    if method == "metagpt":
        return found | {"base_model": "base", "parameters": parameters}
    return found | {"parameters": {"text": "t.txt", "context": 64, **parameters}}


def plan_of(*documents: dict[str, Any], keep: bool = False, **config: Any) -> Plan:
    Path("recipe.yaml").write_text("\n---\n".join(map(json.dumps, documents)))
    if not keep:
        Path("recipe.lock.json").unlink(missing_ok=True)
    return load_plan(load_settings({"recipes": ["recipe.yaml"], **config}), say=lambda line: None)


def calls(plan: Plan) -> dict[str, list[str]]:
    """Return the steps in each tensor of a build."""
    (build,) = plan.builds.values()
    return {
        tensor.name: [p.method for p in ex.walk(tensor.expression) if isinstance(p, ex.Call)]
        for job in build.shards
        for tensor in load_spec(job.digest).tensors
    }


class TestRegMean:
    def test_linear_layers_are_solved_and_all_else_is_a_sum(self) -> None:
        found = calls(plan_of(document()))
        solved = {name for name, steps in found.items() if steps == ["regmean_solution"]}
        assert {name for name in found if "_proj" in name} | {"lm_head.weight"} == solved
        assert all(not steps for name, steps in found.items() if name not in solved)

    def test_jobs_know_what_is_measured(self) -> None:
        plan = plan_of(document(tokens=300))
        assert [job.folders for job in plan.made.values()] == [("a",), ("b",)]
        for job in plan.made.values():
            options = load_made_spec(job).options
            assert (options["tokens"], options["context"]) == (300, 64)
            assert ["model.layers.1.mlp.down_proj.weight", [16, 24]] in options["tensors"]
            assert job.files[-1] == job.text == "t.txt"
            assert len(job.files) == len(job.identities)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan

    def test_what_the_recipe_declines_is_not_measured(self) -> None:
        grams = [{"filter": "mlp", "value": False}, {"value": True}]
        plan = plan_of(document(grams=grams))
        assert not calls(plan)["model.layers.0.mlp.up_proj.weight"]
        for job in plan.made.values():
            names = [name for name, _ in load_made_spec(job).options["tensors"]]
            assert names and not any("mlp" in name for name in names)

    def test_each_model_may_have_a_text_of_its_own(self) -> None:
        Path("b.txt").write_text("other " * 200)
        one = document()
        one["models"][1]["parameters"] = {"text": "b.txt", "context": 32}
        texts = {job.folders: job.text for job in plan_of(one).made.values()}
        assert texts == {("a",): "t.txt", ("b",): "b.txt"}


class TestIdentity:
    def test_recipes_share_what_is_measured(self) -> None:
        slices = [{"sources": [{"model": m, "layer_range": [0, 1]} for m in "ab"]}]
        whole = plan_of(document()).made.keys()
        part = document() | {"slices": slices}
        del part["models"]
        assert plan_of(part).made.keys() == whole
        assert plan_of(document(weight=0.5, scale=0.1)).made.keys() == whole

    @pytest.mark.parametrize("change", [{"tokens": 99}, {"context": 8}, {"model_dtype": "float16"}])
    def test_options_change_it(self, change: dict[str, Any]) -> None:
        before = plan_of(document()).made.keys()
        assert not before & plan_of(document(**change)).made.keys()

    def test_the_texts_content_counts_and_not_its_name(self) -> None:
        before = plan_of(document())
        Path("t.txt").rename("u.txt")
        after = plan_of(document(text="u.txt"))
        assert after.made.keys() == before.made.keys()
        assert [job.digest for job in after.shards] == [job.digest for job in before.shards]
        Path("u.txt").write_text(_TEXT + "more")
        changed = plan_of(document(text="u.txt"))
        assert not changed.made.keys() & before.made.keys()


class TestMetaGpt:
    def test_every_tensor_has_its_coefficients_from_norms(self) -> None:
        plan = plan_of(document("metagpt"))
        steps = ["metagpt_sum", "metagpt_share", "metagpt_share"]
        assert set(map(tuple, calls(plan).values())) == {tuple(steps)}
        assert [job.folders for job in plan.made.values()] == [("a", "base"), ("b", "base")]
        assert all(job.text is None for job in plan.made.values())

    def test_a_model_that_lacks_a_tensor_counts_by_its_whole_norm(self) -> None:
        bias = "model.layers.0.self_attn.q_proj.bias"
        for name in ("base", "a"):
            path = Path(name) / "model.safetensors"
            save_file(load_file(path) | {bias: torch.ones(16, dtype=torch.float16)}, path)
        plan = plan_of(document("metagpt"))
        (tensor,) = (
            tensor
            for job in plan.shards
            for tensor in load_spec(job.digest).tensors
            if tensor.name == bias
        )
        found = [p for p in ex.walk(tensor.expression) if isinstance(p, ex.Call)]
        assert [one.method for one in found] == ["metagpt_sum", "metagpt_share"]
        assert found[1].models == ("norm of a - base", "norm of b - base")

    @pytest.mark.parametrize("count", [1, 16, _ROW, 3 * _ROW, 128256 * 4096, 151936 * 8192])
    def test_rows_are_equal_and_few(self, count: int) -> None:
        width = _width(count)
        assert count % width == 0
        assert width <= _ROW and count // width <= 4 * -(-count // _ROW)

    def test_a_length_without_such_rows_is_one_row(self) -> None:
        prime = 2 * _ROW + 89
        assert all(prime % n for n in range(2, 13))
        assert _width(prime) == prime


def test_an_adapter_may_be_extracted_from_it() -> None:
    lora = {"name": "lora", "extract_lora": {"model": "out", "base_model": "a", "rank": 2}}
    plan = plan_of(document(), lora)
    assert len(plan.made) == 2
    (adapter,) = plan.adapters.values()
    made = {job.output for job in plan.made.values()}
    assert all(made <= set(job.sources) for job in adapter.updates)


class TestBytes:
    @pytest.mark.parametrize(
        ("method", "size"),
        [
            # of the inputs of q, k, v, o, gate and up; of down; of the head
            ("regmean", 2 * 4 * (_LAYERS * (6 * 16**2 + 24**2) + 16**2)),
            ("fisher", 2 * 4 * _ELEMENTS),
            ("metagpt", 2 * 4),
        ],
    )
    def test_what_jobs_make_takes_disk(self, method: str, size: int) -> None:
        plan = plan_of(document(method))
        totals = plan_totals(plan, lambda path: False)
        assert totals.made == Amount(2, size)
        assert totals.disk == size + totals.models.bytes
        assert f"{human_bytes(size)} in 2 files of made sources" in plan_text(plan, _PLAIN)
        (there, _) = plan.made.values()
        rest = plan_totals(plan, lambda path: path == there.output)
        assert (rest.done, rest.disk) == (Amount(1, size // 2), totals.disk - size // 2)
        plan_of(document(method), disk_budget=totals.disk)
        with pytest.raises(UserError, match="what is needed at once"):
            plan_of(document(method), disk_budget=totals.disk - 1)

    def test_what_jobs_read_for_it_counts(self) -> None:
        sizes = {n: sum(p.stat().st_size for p in Path(n).iterdir()) for n in ("a", "b")}
        plan = plan_of(document())
        found = {job.folders: job.bytes_read for job in plan.made.values()}
        assert found == {(n,): size + len(_TEXT) for n, size in sizes.items()}
        shards = sum(job.bytes_read for job in plan.shards)
        assert plan_totals(plan, lambda path: False).read == sum(found.values()) + shards
        one = plan_of(document("metagpt")).made.values()
        assert {job.bytes_read for job in one} == {2 * 2 * _ELEMENTS}


class TestTexts:
    def test_an_edit_is_told_until_it_is_locked(self) -> None:
        plan_of(document())
        Path("t.txt").write_text("x" * 500)
        with pytest.raises(UserError, match=r"'t.txt' has another content.*\n.*snakemake lock"):
            plan_of(document(), keep=True)

    def test_a_new_text_is_locked(self) -> None:
        before = plan_of(document()).made.keys()
        Path("u.txt").write_text("x" * 500)
        plan = plan_of(document(text="u.txt"), keep=True)
        assert not before & plan.made.keys()
        assert set(json.loads(Path("recipe.lock.json").read_text())["texts"]) == {"u.txt"}

    @pytest.mark.parametrize(
        ("text", "content", "message"),
        [
            ("none.txt", None, "there is no file of text 'none.txt'"),
            ("empty.txt", "", "has 0 bytes"),
            ("short.txt", "words", "has 5 bytes, too few for one block of 64 tokens"),
            (3, None, "must be a text"),
        ],
    )
    def test_mistakes_are_told(self, text: Any, content: str | None, message: str) -> None:
        if content is not None:
            Path(text).write_text(content)
        with pytest.raises(UserError, match=message):
            plan_of(document(text=text))

    def test_no_text_is_told(self) -> None:
        one = document()
        del one["parameters"]["text"]
        with pytest.raises(UserError, match="no `text` of model 'a'"):
            plan_of(one)

    def test_a_lock_that_is_not_ours_is_refused(self) -> None:
        plan_of(document())
        path = Path("recipe.lock.json")
        lock = json.loads(path.read_text())
        for change in ({"size": -1}, {"sha256": "../x"}, {"odd": 1}):
            bad = lock | {"texts": {"t.txt": lock["texts"]["t.txt"] | change}}
            path.write_text(json.dumps(bad))
            with pytest.raises(UserError, match=r"texts, t\.txt"):
                plan_of(document(), keep=True)


class TestRefused:
    @pytest.mark.parametrize("value", [[{"filter": "mlp", "value": 8}, {"value": 9}], [8, 9]])
    def test_options_that_differ_between_tensors(self, value: Any) -> None:
        with pytest.raises(UserError, match="says how a whole model is measured"):
            plan_of(document(context=value))

    @pytest.mark.parametrize("method", ["regmean", "metagpt"])
    def test_documents_are_not_there_yet(self, method: str) -> None:
        first = {"name": "first", "merge_method": "passthrough", "models": [{"model": "a"}]}
        second = document(method)
        second["models"][0]["model"] = "first"
        with pytest.raises(UserError, match=r"'first' is not built yet"):
            plan_of(first, second)

    def test_weights_without_a_sum(self) -> None:
        with pytest.raises(UserError, match="the weights sum to 0"):
            plan_of(document("fisher", weight=0))

    def test_mergekits_numerics(self) -> None:
        with pytest.raises(UserError, match=r"not one of mergekit 0\.1\.5's"):
            plan_of(document(), numerics="mergekit-0.1.5")


def test_a_description_tells_what_jobs_made_of_what() -> None:
    Path("b.txt").write_text(_TEXT * 2)
    one = document()
    one["models"][1]["parameters"] = {"text": "b.txt"}
    found, _ = described(one)
    rows = {row["files"][0][0]: row for row in found["made"]}
    assert {row["digest"] for row in rows.values()} == plan_of(one, keep=True).made.keys()
    for model, text in (("a", "t.txt"), ("b", "b.txt")):
        row = rows[model]
        assert (row["kind"], row["text"]) == ("grams", [text, sha256_of(text)])
        read = {name: identity for _, name, identity in row["files"]}
        assert set(read) == {path.name for path in Path(model).iterdir()}
        assert read["config.json"] == f"sha256:{sha256_of(Path(model, 'config.json'))}"
    plain = {
        **one,
        "merge_method": "linear",
        "models": [{"model": "a"}],
        "parameters": {"weight": 1},
    }
    assert "made" not in described(plain)[0]


def test_a_description_tells_of_it() -> None:
    found, warnings = described(document("fisher"))
    assert warnings == []
    label = "fisher_average(a, b, Fisher information of a, Fisher information of b)"
    assert found["coefficients"]["model.norm.weight"] == [[label, 1.0]]
    assert read_plan(next(Path(".shardmerge/plans").iterdir())).made
