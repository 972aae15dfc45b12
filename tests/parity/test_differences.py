"""Where shardmerge differs from mergekit 0.1.5 on purpose; docs/numerics.md names each test.

Every test shows both sides: what mergekit does, and what is done here instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from oracle import differing_bits, run_mergekit, run_shardmerge
from safetensors.torch import load_file

from helpers.models import llama_shapes, random_tensors, save_model
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.compose.composer import Composer
from shardmerge.package.verify import _check_stray
from shardmerge.plan.decide import load_plan
from shardmerge.recipe.recipe import load_recipe
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.lock import Lock

TENSOR = "model.layers.1.mlp.up_proj.weight"


def _models(folder: Path, **edits: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Write models a and b; an edit changes some elements of TENSOR in one of them."""
    made = {}
    for seed, name in enumerate("ab"):
        tensors = random_tensors(llama_shapes(2), seed)
        for index, value in edits.get(name, {}).items():
            tensors[TENSOR].view(-1)[index] = value
        save_model(folder / name, tensors)
        made[name] = tensors
    return made


def _recipe(folder: Path, weights: tuple, parameters: dict | None = None, **document: Any) -> Path:
    """Write a linear merge of a and b with a weight for each."""
    document = {
        "name": "merged",
        "merge_method": "linear",
        "models": [
            {"model": str(folder / name), "parameters": {"weight": weight}}
            for name, weight in zip("ab", weights, strict=True)
        ],
        "parameters": {"normalize": False} | (parameters or {}),
        "dtype": "float16",
    } | document
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


class TestNegativeZero:
    """A tensor that is taken whole keeps its bits, -0.0 among them."""

    @pytest.fixture
    def case(self, tmp_path: Path) -> tuple[Any, ...]:
        made = _models(tmp_path, a={0: -0.0, 5: -0.0})
        return tmp_path, _recipe(tmp_path, (1, 0)), made["a"]

    def test_mergekit_loses_the_sign(self, case: tuple[Any, ...]) -> None:
        folder, recipe, a = case
        theirs = run_mergekit(recipe, folder / "mergekit")["merged"]
        assert differing_bits(theirs, a) == {TENSOR: 2}
        assert torch.equal(theirs[TENSOR], a[TENSOR])  # equal as numbers

    def test_float32_keeps_it(self, case: tuple[Any, ...]) -> None:
        folder, recipe, a = case
        ours = run_shardmerge(recipe, folder)["merged"]
        assert differing_bits(ours, a) == {}

    def test_mergekit_numerics_loses_it_too(self, case: tuple[Any, ...]) -> None:
        folder, recipe, _ = case
        theirs = run_mergekit(recipe, folder / "mergekit")["merged"]
        ours = run_shardmerge(recipe, folder, numerics=MERGEKIT)["merged"]
        assert differing_bits(ours, theirs) == {}


class TestZeroTimesInfinity:
    """A tensor of weight 0 is not read, so what is in it does not matter."""

    @pytest.fixture
    def case(self, tmp_path: Path) -> tuple[Any, ...]:
        made = _models(tmp_path, b={3: float("inf"), 4: float("nan")})
        return tmp_path, _recipe(tmp_path, (1, 0)), made["a"]

    def test_mergekit_makes_nan(self, case: tuple[Any, ...]) -> None:
        folder, recipe, _ = case
        theirs = run_mergekit(recipe, folder / "mergekit")["merged"]
        assert theirs[TENSOR].view(-1).isnan().nonzero().view(-1).tolist() == [3, 4]

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_it_is_left_out(self, case: tuple[Any, ...], numerics: Numerics) -> None:
        folder, recipe, a = case
        ours = run_shardmerge(recipe, folder, numerics=numerics)["merged"]
        assert torch.equal(ours[TENSOR], a[TENSOR])


class TestOverflow:
    """A result that is infinite where no source was fails the job, unless it is allowed."""

    @pytest.fixture
    def case(self, tmp_path: Path) -> tuple[Any, ...]:
        _models(tmp_path, a={7: 60000.0}, b={7: 60000.0})
        return tmp_path, _recipe(tmp_path, (1, 1))

    def test_mergekit_writes_infinity(self, case: tuple[Any, ...]) -> None:
        folder, recipe = case
        theirs = run_mergekit(recipe, folder / "mergekit")["merged"]
        assert theirs[TENSOR].view(-1)[7] == float("inf")

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_it_is_refused(self, case: tuple[Any, ...], numerics: Numerics) -> None:
        folder, recipe = case
        with pytest.raises(UserError, match="up_proj"):
            run_shardmerge(recipe, folder, numerics=numerics)

    def test_it_is_written_if_allowed(self, case: tuple[Any, ...]) -> None:
        folder, recipe = case
        ours = run_shardmerge(recipe, folder, allow_nonfinite=True)["merged"]
        assert ours[TENSOR].view(-1)[7] == float("inf")


class TestIntermediateRounding:
    """In float32 numerics a stage that is only read by another is never rounded."""

    def test_error_is_smaller(self, tmp_path: Path) -> None:
        made = _models(tmp_path)
        first = yaml.safe_load(_recipe(tmp_path, (0.3, 0.9)).read_text()) | {"name": "first"}
        second = first | {
            "name": "second",
            "models": [
                {"model": "first", "parameters": {"weight": 7.0}},
                {"model": str(tmp_path / "a"), "parameters": {"weight": -2.0}},
            ],
        }
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump_all([first, second], sort_keys=False))
        theirs = run_mergekit(recipe, tmp_path / "mergekit")["second"]
        same = run_shardmerge(recipe, tmp_path, numerics=MERGEKIT, results="same")["second"]
        ours = run_shardmerge(recipe, tmp_path, results="ours")["second"]
        assert differing_bits(same, theirs) == {}
        for name in ours:
            a, b = made["a"][name].double(), made["b"][name].double()
            exact = 7.0 * (0.3 * a + 0.9 * b) - 2.0 * a
            mine, other = (float((t[name].double() - exact).norm()) for t in (ours, theirs))
            assert mine < other, name


class TestConfigOfWhichModel:
    """Without `base_model`, the first model of the document gives config.json and the layout."""

    NAMES = ("one/alpha", "two/beta", "three/gamma")

    #: Prints which of its models mergekit takes, of a hundred recipes.
    CHOICES = (
        "from mergekit.config import MergeConfiguration\n"
        "for i in range(100):\n"
        "    models = [{'model': f'{name}/{i}'} for name in 'abc']\n"
        "    values = {'merge_method': 'linear', 'models': models}\n"
        "    found = MergeConfiguration.model_validate(values).referenced_models()\n"
        "    print(found[0].model.path[0], end='')\n"
    )

    @pytest.mark.slow
    def test_mergekit_takes_any(self) -> None:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", self.CHOICES],
                env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in "01"
        ]
        one, other = (process.communicate()[0] for process in processes)
        assert one != other
        assert set(one) == set(other) == set("abc")

    def test_the_first_is_taken(self, tmp_path: Path) -> None:
        for order in (self.NAMES, self.NAMES[::-1]):
            document = {
                "merge_method": "linear",
                "models": [{"model": n, "parameters": {"weight": 1}} for n in order],
            }
            path = tmp_path / "recipe.yaml"
            path.write_text(yaml.safe_dump(document))
            composer = Composer(load_recipe(path), Lock({}), FLOAT32)
            assert composer.reference_source("recipe") == order[0]

    def test_base_model_is_taken(self, tmp_path: Path) -> None:
        _models(tmp_path)
        recipe = _recipe(tmp_path, (1, 1), base_model=str(tmp_path / "b"))
        composer = Composer(load_recipe(recipe), Lock({}), FLOAT32)
        assert composer.reference_source("merged") == str(tmp_path / "b")


class TestMistakes:
    """What mergekit passes over in silence, and what is refused here before anything is read."""

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"normalise": False}, "unknown parameter 'normalise'"),
            ({"smooth": True}, None),
            ({"scale": [{"filter": "up_porj", "value": 2}]}, None),
        ],
    )
    def test_parameter_that_does_nothing(
        self, tmp_path: Path, parameters: dict[str, Any], message: str | None
    ) -> None:
        _models(tmp_path)
        recipe = _recipe(tmp_path, (1, 1), parameters)
        assert run_mergekit(recipe, tmp_path / "mergekit")["merged"]
        if message:
            with pytest.raises(UserError, match=message):
                run_shardmerge(recipe, tmp_path)
        else:
            (warning,) = load_recipe(recipe).warnings
            assert f"no parameter {next(iter(parameters))!r}" in warning.message

    @pytest.mark.parametrize(("word", "near"), [("up_porj", "up_proj"), ("modelnorm", None)])
    def test_filter_that_matches_nothing(self, tmp_path: Path, word: str, near: str | None) -> None:
        _models(tmp_path)
        rules = [{"filter": word, "value": 0}, {"value": 1}]
        recipe = _recipe(tmp_path, (rules, 1))
        self._is_passed_over_or_misspelt(recipe, near, f"'{word}' matches no tensor", tmp_path)

    @pytest.mark.parametrize(("key", "near"), [("dype", "dtype"), ("random_seed", None)])
    def test_key_that_does_nothing(self, tmp_path: Path, key: str, near: str | None) -> None:
        _models(tmp_path)
        recipe = _recipe(tmp_path, (1, 1), **{key: "float16"})
        self._is_passed_over_or_misspelt(recipe, near, f"unknown key '{key}'", tmp_path)

    @staticmethod
    def _is_passed_over_or_misspelt(recipe: Any, near: Any, message: Any, folder: Any) -> None:
        """What mergekit passes over makes the same model here, unless a word is near it."""
        theirs = run_mergekit(recipe, folder / "mergekit")["merged"]
        if near is None:
            ours = run_shardmerge(recipe, folder, numerics=MERGEKIT)
            assert differing_bits(ours["merged"], theirs) == {}
            return
        with pytest.raises(UserError, match=message) as caught:
            run_shardmerge(recipe, folder)
        assert near in str(caught.value)

    def test_weights_that_sum_to_zero(self, tmp_path: Path) -> None:
        _models(tmp_path)
        recipe = _recipe(tmp_path, (1, -1), {"normalize": True})
        theirs = run_mergekit(recipe, tmp_path / "mergekit")["merged"]
        assert not theirs[TENSOR].isfinite().any()
        with pytest.raises(UserError, match="sum to 0"):
            run_shardmerge(recipe, tmp_path)


class TestLayout:
    """Output shards follow the files of the model that the config is taken from."""

    def test_files(self, tmp_path: Path) -> None:
        for seed, (name, files) in enumerate({"a": 3, "b": 2}.items()):
            save_model(tmp_path / name, random_tensors(llama_shapes(2), seed), files)
        recipe = _recipe(tmp_path, (1, 1))
        run_mergekit(recipe, tmp_path / "mergekit")
        assert len(list((tmp_path / "mergekit" / "merged").glob("*.safetensors"))) == 1
        run_shardmerge(recipe, tmp_path)

        def layout(folder: Path) -> dict[str, list[str]]:
            return {p.name: sorted(load_file(p)) for p in sorted(folder.glob("*.safetensors"))}

        assert layout(tmp_path / "results" / "merged" / "model") == layout(tmp_path / "a")


class TestEditedRecipe:
    """An edit of the recipe builds what it changes; mergekit-multi keeps what it finds."""

    def test_mergekit_keeps_the_old_result(self, tmp_path: Path) -> None:
        _models(tmp_path)
        out = tmp_path / "mergekit"
        before = run_mergekit(_recipe(tmp_path, (0.5, 0.5)), out, lazy=True)["merged"]
        after = run_mergekit(_recipe(tmp_path, (0.9, 0.1)), out, lazy=True)["merged"]
        assert differing_bits(after, before) == {}

    def test_an_edit_gives_other_jobs_and_other_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        _models(tmp_path)
        found = []
        for weights in ((0.5, 0.5), (0.9, 0.1), (0.5, 0.5)):
            recipe = _recipe(tmp_path, weights)
            settings = load_settings({"recipes": [str(recipe)]})
            plan = load_plan(settings, say=lambda line: None)
            jobs = [job.digest for job in plan.builds["merged"].shards]
            found.append((jobs, run_shardmerge(recipe, tmp_path)["merged"]))
        (first, a), (second, b), (third, c) = found
        assert not set(first) & set(second) and first == third
        assert differing_bits(a, b)
        assert differing_bits(a, c) == {}


class TestOldShards:
    """A model's folder holds the model's shards; what lies there besides, if not ours, is told."""

    def test_mergekit_leaves_the_old_ones(self, tmp_path: Path) -> None:
        _models(tmp_path)
        recipe, out = _recipe(tmp_path, (0.5, 0.5)), tmp_path / "mergekit"
        run_mergekit(recipe, out, out_shard_size=4000)
        small = {path.name for path in (out / "merged").glob("*.safetensors")}
        run_mergekit(recipe, out)
        both = {path.name for path in (out / "merged").glob("*.safetensors")}
        assert len(small) > 1 and both == small | {"model.safetensors"}
        # The index still names the old ones.
        index = json.loads((out / "merged" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == small

    def test_what_we_did_not_write_is_refused(self, tmp_path: Path) -> None:
        """Nothing of a user's is deleted, so a model with strange weights does not pass."""
        _models(tmp_path)
        recipe = _recipe(tmp_path, (0.5, 0.5))
        run_shardmerge(recipe, tmp_path)
        folder = tmp_path / "results" / "merged" / "model"
        stray = folder / "model-00001-of-00003.safetensors"
        stray.write_bytes((folder / "model.safetensors").read_bytes())
        shards = [SimpleNamespace(file="model.safetensors")]
        description = SimpleNamespace(shards=shards, indexes=[])
        with pytest.raises(UserError, match="is not part of this model") as caught:
            _check_stray(description, folder)
        assert stray.name in str(caught.value)


class TestFloat32Leak:
    """The result has the stage's dtype, whatever a method computes in."""

    METHODS = ("arcee_fusion", "ramplus_tl")

    def _recipe(self, folder: Path, method: str) -> Path:
        document = {
            "name": "merged",
            "merge_method": method,
            "base_model": str(folder / "a"),
            "models": [{"model": str(folder / "b")}],
            "dtype": "float16",
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    @pytest.mark.parametrize("method", METHODS)
    def test_mergekit_saves_float32(self, tmp_path: Path, method: str) -> None:
        _models(tmp_path)
        recipe = self._recipe(tmp_path, method)
        theirs = run_mergekit(recipe, tmp_path / "mergekit")["merged"]
        assert {t.dtype for t in theirs.values()} == {torch.float32}
        config = json.loads((tmp_path / "mergekit" / "merged" / "config.json").read_text())
        assert config.get("dtype", config.get("torch_dtype")) == "float16"

    @pytest.mark.parametrize("method", METHODS)
    def test_float32_numerics_save_what_the_recipe_says(self, tmp_path: Path, method: str) -> None:
        _models(tmp_path)
        ours = run_shardmerge(self._recipe(tmp_path, method), tmp_path)["merged"]
        assert {t.dtype for t in ours.values()} == {torch.float16}

    @pytest.mark.parametrize("method", METHODS)
    def test_mergekit_numerics_have_its_types_too(self, tmp_path: Path, method: str) -> None:
        _models(tmp_path)
        recipe = self._recipe(tmp_path, method)
        theirs = run_mergekit(recipe, tmp_path / "mergekit")["merged"]
        ours = run_shardmerge(recipe, tmp_path, numerics=MERGEKIT)["merged"]
        assert differing_bits(ours, theirs) == {}
