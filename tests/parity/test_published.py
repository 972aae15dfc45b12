"""Recipes in all the shapes in which people publish them: read, planned, and merged as mergekit.

Each file of ``recipes/`` is one shape, told in its first line, with neutral names and values; those
of ``recipes/refused/`` are recipes that no tool can merge, or that are surely not what was meant.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from oracle import (
    differing_bits,
    planned_ids,
    rows_by_token,
    run_mergekit,
    run_shardmerge,
)

from helpers.published_models import ELSEWHERE, write_models
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import MERGEKIT
from shardmerge.methods import registry
from shardmerge.plan.decide import load_plan
from shardmerge.recipe.recipe import folder_name, load_recipe
from shardmerge.recipe.settings import load_settings

RECIPES = Path(__file__).parent / "recipes"
TAKEN = sorted(path.stem for path in RECIPES.glob("*.yaml"))
#: Where not all of a recipe has an effect: what is told of it, by the line's number.
TOLD = {
    "arcee-fusion": {9: "ignored-parameter"},
    "breadcrumbs-ties-off": {10: "ignored-parameter"},
    "dare-ties-evolved": {8: "ignored-parameter", 9: "ignored-parameter"},
    "empty-ranges": {3: "empty-slice"},
    "model-stock-weights": {9: "ignored-parameter"},
    "multislerp": {20: "ignored-key", 21: "ignored-key"},
    "name-of-a-repository": {2: "renamed", 10: "renamed"},
    "name-with-spaces": {2: "renamed"},
    "passthrough-revision-key": {5: "ignored-key"},
    "passthrough-weight": {4: "ignored-parameter"},
    "sce": {10: "ignored-parameter"},
    "sce-everything": {
        **dict.fromkeys((5, 6, 14, 16, 17, 18, 19, 20), "ignored-parameter"),
    },
    "sce-top": {6: "ignored-key"},
    "slerp-filters-of-another-time": {22: "unmatched-filter"},
    "slerp-layer-filters": {7: "ignored-parameter", 15: "unmatched-filter"},
    "slerp-normalize": {9: "ignored-parameter"},
    "slerp-slice-parameters": {15: "ignored-key", 19: "ignored-parameter", 20: "ignored-key"},
    "ties-aligned": {
        **dict.fromkeys((15, 16, 17), "ignored-key"),
        14: "ignored-parameter",
    },
    "ties-keys-beside": dict.fromkeys((4, 13, 14), "ignored-key"),
    "ties-tied": {10: "unmatched-filter"},
}
#: Line of the mistake, what is said of it, and what to write instead.
REFUSED = {
    "adapter-as-model": (3, "is an adapter (LoRA), not a model", "MODEL+ADAPTER"),
    "both-tokenizers": (7, "`tokenizer_source` or `tokenizer`, not both", ""),
    "dtype-misspelt": (7, "unknown key 'dype'", "Did you mean 'dtype'?"),
    "dtype-quantised": (7, "dtype 'q4_k_m'", "bfloat16, float16, float32, float64"),
    "dtype-short": (7, "dtype 'bf16'", "Did you mean 'bfloat16'?"),
    "experts-as-method": (
        4,
        "`experts_per_token` is 2, but there are 1 experts",
        "or more experts",
    ),
    "fenced": (2, "found character '`'", "the marks of the code block"),
    "hub-name-without-owner": (4, "model 'gpt2' is neither", "the Hub's `owner/name`"),
    "karcher-twice": (3, "listed twice", "Remove one of the two"),
    "linear-no-weights": (4, "no `weight` of model 'acme/chat-7b'", "Give `weight` under"),
    "linear-sources-weight": (4, "no `weight` of model 'acme/chat-7b'", "Give `weight` under"),
    "method-of-another-version": (5, "unknown merge_method 'core_space'", "model_stock"),
    "method-shortened": (5, "unknown merge_method 'dare'", "'dare_ties'"),
    "methodless": (2, "has no `merge_method`", "Write `merge_method: linear`"),
    "missing-weight": (5, "no `weight` of model 'acme/math-7b'", "Give `weight` under"),
    "models-as-names": (3, "is only a name", "`- model: acme/chat-7b`"),
    "models-key-lost": (5, "mapping values are not allowed", "indentation"),
    "multi-indented": (12, "could not find expected ':'", "`---` between documents"),
    "multi-out-path": (15, "a second document has no `name`", "a `name` of its own"),
    "other-width": (2, "has shape [28, 16] in 'acme/chat-7b'", "one architecture and size"),
    "parametersless": (4, "an entry of `models` has no `model`", ""),
    "range-beyond": (4, "ends beyond the 6 layers", "write at most `[0, 6]`"),
    "range-to-the-end": (5, "two whole numbers from 0 on", "none is counted from the end"),
    "search-genome": (2, "a recipe for `mergekit-evolve`", "`shardmerge search`"),
    "slerp-itself": (4, "listed twice", "Remove one of the two"),
    "slerp-no-base": (2, "needs a `base_model`", "Give `base_model:`"),
    "sources-without-ranges": (4, "has no `layer_range`", "`layer_range: [0, 32]`"),
    "tabs": (3, "found character '\\t'", "Indent with spaces"),
    "template-unknown": (9, "the chat template 'chatlm'", "Did you mean 'chatml'?"),
    "ties-slices": (4, "does not list its base model", "Add it to the slice's `sources`"),
    "trailing-mark": (7, "dtype 'bfloat16`'", "Did you mean 'bfloat16'?"),
    "two-adapters": (3, "names 2 adapters", "A model takes one"),
    "unindented": (8, "expected <block end>", "indentation"),
    "vocabularies-differ": (2, "has shape", "`tokenizer_source: union`"),
}
#: What mergekit merges of these: the same without the line; a model of no layers.
MERGEKIT_TAKES = ("dtype-misspelt", "range-to-the-end")
#: What mergekit cannot read, and what it reads in its place.
READS = {
    "multi-name-last": ("linear\ndtype: bfloat16\n---\n", "linear\ndtype: bfloat16\n"),
    "passthrough-blended-end": ("model:acme", "acme"),
}
#: Merged at random, so that no two tools agree; those of density 1 are not.
DRAWN = (
    *("dare-linear", "dare-ties-commented-models", "dare-ties-many"),
    *("della", "della-flat", "della-linear-modules", "della-linear-template"),
)
#: One of every method, and of what is odd in YAML; the others run with the slow tests.
FAST = (
    *("arcee-fusion", "breadcrumbs", "indented", "linear-anchors", "linear-quoted"),
    *("multi-frankenmerge", "multi-name-last", "name-of-a-repository", "nearswap", "nuslerp"),
    *("passthrough-blended-end", "passthrough-scaled-copies", "sce-everything"),
    *("slerp-filters-of-another-time", "task-arithmetic-machine-written", "ties-gradients"),
    *("ties-tied", "tokens-by-model", "windows-folders"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def sources(root: Path) -> dict[str, str]:
    return write_models(root)


def copy(name: str, folder: Path) -> Path:
    return Path(shutil.copy(RECIPES / f"{name}.yaml", folder / f"{Path(name).name}.yaml"))


def merged_by_mergekit(name: str, recipe: Path, root: Path, out: Path) -> dict:
    """Return the tensors of all documents; models are folders below the working directory."""
    text = recipe.read_text()
    for old, new in (READS.get(name, ("", "")), *ELSEWHERE.items()):
        text = text.replace(old, new) if old else text
    out.mkdir()
    given = out / recipe.name
    given.write_text(text)
    with contextlib.chdir(root):
        return run_mergekit(given, out, lora_merge_cache=str(out / "adapted"))


class TestCorpus:
    def test_every_file_tells_its_shape(self) -> None:
        told = {}
        for path in RECIPES.rglob("*.yaml"):
            first = path.read_text().splitlines()[0]
            assert first.startswith("# ") and len(first) <= 100, path.name
            assert told.setdefault(first, path.name) == path.name
        assert {p.stem for p in (RECIPES / "refused").glob("*.yaml")} == set(REFUSED)
        assert {*FAST, *TOLD, *READS} <= set(TAKEN)

    def test_every_method_is_here(self) -> None:
        used = {s.method for n in TAKEN for s in load_recipe(RECIPES / f"{n}.yaml").stages.values()}
        assert used == {m.name for m in registry.methods() if registry.in_mergekit(m.name)}


class TestReading:
    @pytest.mark.parametrize("name", TAKEN)
    def test_planned(
        self, name: str, sources: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = copy(name, tmp_path)
        monkeypatch.chdir(tmp_path)
        settings = load_settings({"recipes": [recipe.name], "sources": sources})
        plan = load_plan(settings, say=lambda line: None)
        assert list(plan.builds) == list(load_recipe(recipe).final)
        told = {}
        for warning in plan.warnings:
            line, check = int(warning.split(":")[1]), warning.rsplit("[", 1)[1].rstrip("]")
            if check.startswith(("ignored", "unmatched", "empty", "renamed")):
                told[line] = check
        assert told == TOLD.get(name, {})

    @pytest.mark.parametrize("name", REFUSED)
    def test_refused(
        self, name: str, sources: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = copy(f"refused/{name}", tmp_path)
        monkeypatch.chdir(tmp_path)
        settings = load_settings({"recipes": [recipe.name], "sources": sources})
        with pytest.raises(UserError) as caught:
            load_plan(settings, say=lambda line: None)
        line, message, hint = REFUSED[name]
        assert caught.value.where == f"{recipe.name}:{line}"
        assert message in caught.value.message
        assert hint in (caught.value.hint or "")


class TestBits:
    @pytest.mark.parametrize(
        "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in TAKEN]
    )
    def test_merged(self, name: str, root: Path, sources: dict[str, Any], tmp_path: Path) -> None:
        recipe = copy(name, tmp_path)
        merged = merged_by_mergekit(name, recipe, root, tmp_path / "mergekit")
        theirs = {folder_name(n): tensors for n, tensors in merged.items()}
        ours = run_shardmerge(
            recipe, tmp_path, numerics=MERGEKIT, sources=sources, allow_nonfinite=True
        )
        read = load_recipe(recipe)
        for final in read.final:
            mine, other = ours[final], theirs[final]
            if read.stages[final].tokenizer:
                mine = rows_by_token(mine, planned_ids(recipe, final))
                other = rows_by_token(other, self.ids(tmp_path / "mergekit" / final))
            differing = differing_bits(mine, other)  # of the same names, types and shapes
            assert bool(differing) == (name in DRAWN), differing

    def ids(self, folder: Path) -> dict[str, int]:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder).get_vocab()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [n for n in REFUSED if n != "hub-name-without-owner"])
    def test_mergekit_refuses_too(self, name: Any, root: Any, sources: Any, tmp_path: Path) -> None:
        recipe = copy(f"refused/{name}", tmp_path)
        if name in MERGEKIT_TAKES:
            assert merged_by_mergekit(name, recipe, root, tmp_path / "mergekit")
            return
        with pytest.raises((RuntimeError, ValueError, OSError, yaml.YAMLError)):
            merged_by_mergekit(name, recipe, root, tmp_path / "mergekit")
