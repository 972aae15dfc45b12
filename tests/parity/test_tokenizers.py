"""Models with different tokenizers: every token's rows, bit for bit as mergekit 0.1.5 has them.

mergekit's ids of new tokens depend on a hash, so rows are compared token by token; all other
tensors, and all ids where no token is new, as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from oracle import differing_bits, planned_ids, rows_by_token, run_mergekit, run_shardmerge
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from helpers.tiny_tokenizers import tokenized
from shardmerge.check.shard import check_shard
from shardmerge.compose.architecture.names import is_vocabulary
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import load_spec
from shardmerge.recipe.settings import load_settings

MERGEKIT = "mergekit-0.1.5"
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = {"<s>": True, "</s>": True}


def write_models(root: Path, dtypes: dict[str, torch.dtype] | None = None, **kinds: Any) -> Path:
    """Write models a, b and c, each with tokens that others lack, and a2 with a's tokenizer."""
    words = {
        "a": (("the", "cat", "sat"), SPECIAL),
        "b": (("the", "dog", "ran"), SPECIAL | {"<|x|>": True, "<y>": False}),
        "c": (("cat", "dog", "big"), {"<s>": True, "<|x|>": True}),
        "a2": (("the", "cat", "sat"), SPECIAL),
    }
    for seed, (name, (spelt, added)) in enumerate(words.items()):
        dtype = (dtypes or {}).get(name, torch.float16)
        spare = 3 if name == "c" else 0
        tokenized(root / name, seed, spelt, added, dtype=dtype, spare=spare, **NAMED, **kinds)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def document(models: Path, names: str = "abc", **keys: Any) -> dict:
    """Return a document that merges models, with the keys of its method."""
    made = {"name": "merged", "merge_method": "linear", "dtype": "float16"} | keys
    if "slices" not in made:
        made["models"] = [
            {"model": str(models / name), "parameters": {"weight": 0.3 + i / 5}}
            for i, name in enumerate(names)
        ]
    return made


def write_recipe(folder: Path, *documents: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return path


def compare(recipe: Path, folder: Path, name: str = "merged", padded: int = 0) -> None:
    """Show that both make the same of a recipe; the last ``padded`` rows within rounding."""
    theirs = run_mergekit(recipe, folder / "mergekit")[name]
    ours = run_shardmerge(recipe, folder, numerics=MERGEKIT)[name]
    their_ids = AutoTokenizer.from_pretrained(folder / "mergekit" / name).get_vocab()
    ids = planned_ids(recipe, name)
    assert set(ids) == set(their_ids)
    for tensor in theirs:
        if not is_vocabulary(tensor):
            continue
        assert ours[tensor].shape == theirs[tensor].shape
        assert ours[tensor].shape[0] == len(ids) + padded
        if padded:  # sums of rows in another order
            near = ours[tensor][-padded:].double() - theirs[tensor][-padded:].double()
            assert near.abs().max() < 1e-3
    assert differing_bits(rows_by_token(ours, ids), rows_by_token(theirs, their_ids)) == {}


def slerp(models: Path) -> dict:
    return {"merge_method": "slerp", "base_model": str(models / "a"), "parameters": {"t": 0.3}}


class TestSources:
    @pytest.mark.parametrize("based", [False, True])
    def test_union(self, models: Path, tmp_path: Path, based: bool) -> None:
        base = {"base_model": str(models / "a")} if based else {}
        recipe = write_recipe(tmp_path, document(models, tokenizer_source="union", **base))
        compare(recipe, tmp_path)

    @pytest.mark.parametrize("source", ["base", "b"])
    def test_one_models_tokens(self, models: Path, tmp_path: Path, source: str) -> None:
        named = source if source == "base" else str(models / source)
        recipe = write_recipe(
            tmp_path, document(models, tokenizer_source=named, base_model=str(models / "a"))
        )
        compare(recipe, tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path / "mergekit" / "merged").get_vocab()
        assert planned_ids(recipe, "merged") == theirs

    def test_same_tokenizers_change_nothing(self, models: Path, tmp_path: Path) -> None:
        keys = {"base_model": str(models / "a"), "tokenizer_source": "union"}
        recipe = write_recipe(tmp_path, document(models, ["a", "a2"], **keys))
        compare(recipe, tmp_path)

    def test_task_vectors(self, models: Path, tmp_path: Path) -> None:
        keys = {"merge_method": "task_arithmetic", "base_model": str(models / "a")}
        recipe = write_recipe(tmp_path, document(models, tokenizer_source="union", **keys))
        compare(recipe, tmp_path)

    def test_slerp(self, models: Path, tmp_path: Path) -> None:
        recipe = write_recipe(
            tmp_path, document(models, "ab", tokenizer_source="union", **slerp(models))
        )
        compare(recipe, tmp_path)

    def test_tied_embeddings(self, tmp_path: Path) -> None:
        models = write_models(tmp_path / "models", tied=True)
        recipe = write_recipe(
            tmp_path, document(models, tokenizer_source="union", base_model=str(models / "a"))
        )
        compare(recipe, tmp_path)

    @pytest.mark.parametrize("dtype", [None, "bfloat16"])
    def test_mixed_dtypes(self, tmp_path: Path, dtype: str | None) -> None:
        dtypes = {"a": torch.float32, "b": torch.bfloat16}
        models = write_models(tmp_path / "models", dtypes)
        keys = {"dtype": dtype} if dtype else {}
        made = document(models, tokenizer_source="union", **keys)
        if not dtype:
            del made["dtype"]
        compare(write_recipe(tmp_path, made), tmp_path)

    def test_slices(self, models: Path, tmp_path: Path) -> None:
        def piece(names: Any, layers: Any) -> dict[Any, Any]:
            sources = [
                {"model": str(models / n), "layer_range": layers, "parameters": {"weight": 0.5}}
                for n in names
            ]
            return {"sources": sources}

        slices = [piece("ab", [0, 2]), piece("bc", [1, 2])]
        recipe = write_recipe(tmp_path, document(models, tokenizer_source="union", slices=slices))
        compare(recipe, tmp_path)

    def test_a_stage_of_a_stage(self, models: Path, tmp_path: Path) -> None:
        first = document(models, "ab", name="first", base_model=str(models / "a"))
        second = document(models, "c", name="merged", base_model="first")
        first["tokenizer_source"] = second["tokenizer_source"] = "union"
        second["models"].append({"model": "first", "parameters": {"weight": 0.5}})
        recipe = write_recipe(tmp_path, first, second)
        compare(recipe, tmp_path)


class TestBlock:
    def tokens(self, models: Path) -> dict:
        def other(name: Any, **keys: Any) -> Any:
            return {"kind": "model_token", "model": str(models / name)} | keys

        return {
            "<new>": {"source": other("a", token="<s>")},
            "<zero>": {"source": {"kind": "zero"}},
            "<id>": {"source": other("b", token_id=3), "force": True},
            "the": {"source": str(models / "b"), "force": True},
            "<|x|>": {"source": str(models / "c")},
            "cat": {"source": str(models / "a")},
        }

    @pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
    @pytest.mark.parametrize("source", ["union", "b"])
    def test_tokens(self, models: Path, tmp_path: Path, method: str, source: str) -> None:
        named = source if source == "union" else str(models / source)
        block = {"source": named, "tokens": self.tokens(models)}
        keys = {"merge_method": method, "base_model": str(models / "a"), "tokenizer": block}
        compare(write_recipe(tmp_path, document(models, **keys)), tmp_path)

    def test_new_tokens_beside_the_bases(self, models: Path, tmp_path: Path) -> None:
        """mergekit adds them to the base model's own tokenizer too, and then finds no rows."""
        block = {"source": "base", "tokens": {"<zero>": {"source": {"kind": "zero"}}}}
        recipe = write_recipe(
            tmp_path, document(models, base_model=str(models / "a"), tokenizer=block)
        )
        with pytest.raises(KeyError):
            run_mergekit(recipe, tmp_path / "mergekit")
        ours = run_shardmerge(recipe, tmp_path, numerics=MERGEKIT)["merged"]
        assert ours["lm_head.weight"].shape == (23, 16)
        assert planned_ids(recipe, "merged")["<zero>"] == 22
        assert not ours["lm_head.weight"][22].any()

    @pytest.mark.parametrize("multiple", [1, 16, 64])
    def test_padding(self, models: Path, tmp_path: Path, multiple: int) -> None:
        block = {"source": "union", "pad_to_multiple_of": multiple}
        recipe = write_recipe(
            tmp_path, document(models, base_model=str(models / "a"), tokenizer=block)
        )
        compare(recipe, tmp_path, padded=-30 % multiple)

    def test_padding_of_known_ids_is_exact(self, models: Path, tmp_path: Path) -> None:
        block = {"source": "base", "pad_to_multiple_of": 32}
        recipe = write_recipe(
            tmp_path, document(models, base_model=str(models / "a"), tokenizer=block)
        )
        theirs = run_mergekit(recipe, tmp_path / "mergekit")["merged"]
        ours = run_shardmerge(recipe, tmp_path, numerics=MERGEKIT)["merged"]
        assert ours["lm_head.weight"].shape == (32, 16)
        assert differing_bits(ours, theirs) == {}


class TestIds:
    """Ids of new tokens follow the recipe's order; mergekit's follow a hash."""

    def test_mergekits_change_from_run_to_run(self, models: Path) -> None:
        from mergekit.common import ModelPath, ModelReference
        from mergekit.tokenizer.build import build_tokenizer

        named = [ModelReference(model=ModelPath(path=str(models / n))) for n in "abc"]
        seen = set()
        for _ in range(20):
            made = build_tokenizer(named[0], named, "union", False, ())
            seen.add(tuple(sorted(made.tokenizer.get_vocab().items())))
        assert len(seen) > 1

    def test_ours_do_not(self, models: Path, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, document(models, tokenizer_source="union"))
        run_shardmerge(recipe, tmp_path)
        code = (
            "import sys; sys.path[:0] = sys.argv[1:3]\n"
            "from pathlib import Path; from oracle import planned_ids\n"
            "ids = planned_ids(Path(sys.argv[3]), 'merged')\n"
            "print(sorted(ids.items(), key=lambda i: i[1]))"
        )
        here = Path(__file__).parent
        paths = [str(here), str(here.parent)]
        found = {
            subprocess.run(
                [sys.executable, "-c", code, *paths, str(recipe)],
                env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("0", "1")
        }
        assert len(found) == 1
        new = list(planned_ids(recipe, "merged"))[22:]
        assert new == ["do", "dog", "ra", "ran", "bi", "big", "<|x|>", "<y>"]


class TestFloat32:
    """The default numerics: the same rows, each within its rounding of the exact value."""

    @pytest.mark.parametrize("source", ["union", "base"])
    def test_near_mergekit(self, models: Path, tmp_path: Path, source: str) -> None:
        block = {"source": source, "pad_to_multiple_of": 16}
        recipe = write_recipe(
            tmp_path, document(models, base_model=str(models / "a"), tokenizer=block)
        )
        exact = run_shardmerge(recipe, tmp_path, results="exact", numerics=MERGEKIT)["merged"]
        ours = run_shardmerge(recipe, tmp_path, results="ours")["merged"]
        for tensor, value in exact.items():
            assert ours[tensor].shape == value.shape
            assert (ours[tensor].double() - value.double()).abs().max() < 1e-3, tensor


class TestVerified:
    """A shard's check recomputes gathered rows by another way than the engine."""

    @pytest.mark.parametrize("numerics", ["float32", MERGEKIT])
    @pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
    def test_every_element(
        self,
        models: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        numerics: str,
        method: str,
    ) -> None:
        block = {"source": "union", "pad_to_multiple_of": 16}
        keys = {"merge_method": method, "base_model": str(models / "a"), "tokenizer": block}
        recipe = write_recipe(tmp_path, document(models, parameters={"density": 0.5}, **keys))
        run_shardmerge(recipe, tmp_path, numerics=numerics)
        monkeypatch.chdir(tmp_path)
        settings = load_settings({"recipes": [str(recipe)], "numerics": numerics})
        plan = load_plan(settings, say=lambda line: None)
        for job in plan.builds["merged"].shards:
            spec = load_spec(job.digest)
            sources = dict(zip(spec.required_files(), map(Path, job.sources), strict=True))
            found = check_shard(spec, Path(job.output), sources, [])
            assert found["passed"] and not found["not_sampled"] and not found["undecided"]


def bert(folder: Path, seed: int) -> None:
    """Put a tiny BERT with its head beside a tokenizer, with a row for each token."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    rows = AutoTokenizer.from_pretrained(folder).vocab_size + 4
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=rows, num_hidden_layers=2, **sizes)
    model = BertForMaskedLM(config)
    model.bert = BertModel(config)  # with the pooler that mergekit asks for
    model.tie_weights()
    model.half()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape).half() * 0.05)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    # mergekit leaves out the layer before the last
    tensors = {n: t for n, t in tensors.items() if not n.startswith("cls.predictions.transform.")}
    tensors["cls.predictions.decoder.weight"] = torch.randn(rows, 16).half()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


class TestBert:
    """The last layer of BERT has a row for every token, and its bias a number."""

    @pytest.fixture(scope="class")
    def models(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = write_models(tmp_path_factory.mktemp("models"))
        for seed, name in enumerate(("a", "b", "c")):
            bert(root / name, seed)
        return root

    @pytest.mark.parametrize("based", [False, True])
    @pytest.mark.parametrize("source", ["union", "b"])
    def test_masked_language_models(
        self, models: Path, tmp_path: Path, source: str, based: bool
    ) -> None:
        named = source if source == "union" else str(models / source)
        base = {"base_model": str(models / "a")} if based else {}
        compare(write_recipe(tmp_path, document(models, tokenizer_source=named, **base)), tmp_path)

    def test_padding(self, models: Path, tmp_path: Path) -> None:
        block = {"source": "union", "pad_to_multiple_of": 64}
        recipe = write_recipe(
            tmp_path, document(models, base_model=str(models / "a"), tokenizer=block)
        )
        compare(recipe, tmp_path, padded=-30 % 64)
