"""Models of one architecture in different layouts: merged as if all were in the first one's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.adapter_cases import factors, write_adapter
from helpers.built_model import Built, merge
from helpers.engine_cases import SMALL, tuned
from helpers.models import LLAMA, random_tensors, save_model
from shardmerge.base.errors import UserError
from shardmerge.engine import arranging

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

_SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
_DEEPSEEK = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "num_key_value_heads": 4,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
#: Class, class of the configuration, values.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _SIZES | {"num_local_experts": 3}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        _SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 8},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 4},
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", _SIZES | _DEEPSEEK),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "vision_config": _VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
            "text_config": _SIZES | {"model_type": "llama"},
            "image_token_index": 1,
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text_config": _SIZES | {"model_type": "gemma3_text", "head_dim": 4},
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
        },
    ),
}
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a and b of every family, each in the layout of files and in the running model's."""
    import transformers

    folder = tmp_path_factory.mktemp("layouts")
    for family, (model_class, config_class, values) in FAMILIES.items():
        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            config = getattr(transformers, config_class)(**values)
            model = getattr(transformers, model_class)(config)
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor.add_(torch.randn(tensor.shape) * 0.05)
            for layout, original in (("files", True), ("running", False)):
                path = folder / family / f"{name}-{layout}"
                model.save_pretrained(path, save_original_format=original)
    return folder


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arranging, "_BAND", 100)  # bytes: bands end within matrices


def built(first: Path, second: Path, recipe: dict[str, Any], **config: Any) -> Built:
    """Merge two folders as models a and b."""
    shutil.rmtree("results", ignore_errors=True)
    Path("recipe.lock.json").unlink(missing_ok=True)
    with tuned(**SMALL):
        return merge(json.dumps(recipe), sources={"a": str(first), "b": str(second)}, **config)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()
    }


def phi3(folder: Path, seed: int, fused: bool, **config: Any) -> Path:
    """Write a model of two layers with fused projections, or its weights as a Llama's."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, 16)}
    for i in range(2):
        p = f"model.layers.{i}."
        shapes |= {
            f"{p}self_attn.qkv_proj.weight": (32, 16),
            f"{p}self_attn.o_proj.weight": (16, 16),
            f"{p}mlp.gate_up_proj.weight": (48, 16),
            f"{p}mlp.down_proj.weight": (16, 24),
        }
    values = random_tensors(shapes, seed, torch.float32)
    kind = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]} if fused else {}
    config = LLAMA | {"num_hidden_layers": 2} | kind | config
    return save_model(folder, values if fused else apart(values), 2, config)


def apart(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of such a model as a Llama has them."""
    found = {}
    for name, value in values.items():
        if "qkv_proj" in name:
            rows = {"q_proj": value[:16], "k_proj": value[16:24], "v_proj": value[24:]}
        elif "gate_up_proj" in name:
            rows = {"gate_proj": value[:24], "up_proj": value[24:]}
        else:
            rows = {"": value}
        fused = "qkv_proj" if "qkv_proj" in name else "gate_up_proj"
        found |= {name.replace(fused, k) if k else name: v.clone() for k, v in rows.items()}
    return found


def copied(found: Built) -> Path:
    """Return a copy of a merged model: the next one is built in the same place."""
    target = Path(f"copy{len(list(Path().glob('copy*')))}")
    shutil.copytree(found.folder, target)
    return target


def same(one: Path, other: Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


LINEAR = {
    "name": "out",
    "merge_method": "linear",
    "models": [
        {"model": "a", "parameters": {"weight": 0.3}},
        {"model": "b", "parameters": {"weight": 0.7}},
    ],
    "dtype": "bfloat16",
}
TASK = {
    "name": "out",
    "merge_method": "task_arithmetic",
    "base_model": "a",
    "models": [{"model": "b", "parameters": {"weight": 0.5}}],
    "dtype": "float32",
}
TIES = TASK | {
    "merge_method": "ties",
    "models": [{"model": "b", "parameters": {"weight": 0.5, "density": 0.5}}],
}


class TestFamilies:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_layouts_differ(self, saved: Path, family: str) -> None:
        names = [tensors(saved / family / f"a-{one}").keys() for one in ("files", "running")]
        assert names[0] != names[1]

    @pytest.mark.parametrize("order", [("files", "running"), ("running", "files")], ids="-".join)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_as_if_both_were_in_the_first(
        self, saved: Path, family: str, order: tuple[str, str]
    ) -> None:
        one, other = (saved / family / f"{n}-{k}" for n, k in zip("ab", order, strict=True))
        mixed = copied(built(one, other, LINEAR))
        plain = copied(built(one, saved / family / f"b-{order[0]}", LINEAR))
        assert same(mixed, plain)
        assert tensors(mixed).keys() == tensors(one).keys()

    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    @pytest.mark.parametrize("recipe", [TASK, TIES], ids=["task_arithmetic", "ties"])
    def test_other_methods(self, saved: Path, recipe: dict[str, Any], numerics: str) -> None:
        folder = saved / "mixtral"
        mixed = copied(built(folder / "a-files", folder / "b-running", recipe, numerics=numerics))
        plain = copied(built(folder / "a-files", folder / "b-files", recipe, numerics=numerics))
        assert same(mixed, plain)

    @pytest.mark.parametrize("deltas", ["fuse", "store"])
    def test_task_vectors_may_be_stored(self, saved: Path, deltas: str) -> None:
        folder = saved / "qwen3_moe"
        mixed = copied(built(folder / "a-running", folder / "b-files", TASK, deltas=deltas))
        plain = copied(built(folder / "a-running", folder / "b-running", TASK))
        assert same(mixed, plain)

    @pytest.mark.parametrize("family", EXPERTS)
    def test_transformers_loads_it(self, saved: Path, family: str) -> None:
        import transformers

        logits = []
        for order in (("files", "running"), ("running", "files"), ("files", "files")):
            one, other = (saved / family / f"{n}-{k}" for n, k in zip("ab", order, strict=True))
            made = built(one, other, LINEAR | {"dtype": "float32"}).folder
            model, said = getattr(transformers, FAMILIES[family][0]).from_pretrained(
                made, output_loading_info=True
            )
            assert not said["missing_keys"] and not said["unexpected_keys"]
            with torch.no_grad():
                logits.append(model(torch.arange(8)[None]).logits)
        assert torch.equal(logits[0], logits[2])
        assert torch.equal(logits[1], logits[2])

    def test_slices_of_both(self, saved: Path) -> None:
        folder = saved / "mixtral"
        rows = [("b", [1, 2]), ("a", [0, 1])]
        recipe = {
            "name": "out",
            "merge_method": "passthrough",
            "slices": [{"sources": [{"model": m, "layer_range": r}]} for m, r in rows],
            "dtype": "float32",
        }
        mixed = copied(built(folder / "a-files", folder / "b-running", recipe))
        plain = copied(built(folder / "a-running", folder / "b-running", recipe))
        assert same(mixed, plain)


def changed(folder: Path, name: str, change: Callable[[str, torch.Tensor], Any]) -> Path:
    """Write a copy of a model with other tensors: pairs of name and value, None for none."""
    pairs = (change(key, value) for key, value in tensors(folder).items())
    values = {key: value.contiguous() for key, value in filter(None, pairs)}
    return save_model(Path(name), values, 1, json.loads((folder / "config.json").read_text()))


class TestVariants:
    """Other ways in which files of experts differ."""

    @pytest.mark.parametrize("fused", ["a", "b"])
    def test_the_last_two_dimensions_exchanged(self, saved: Path, fused: str) -> None:
        folder = saved / "qwen3_moe"
        turn = lambda key, value: (key, value.mT if value.ndim == 3 else value)  # noqa: E731
        turned = changed(folder / f"{fused}-running", "turned", turn)
        pair = {n: folder / f"{n}-files" for n in "ab"}
        mixed = copied(built(*(pair | {fused: turned}).values(), PASS))
        plain = copied(built(*pair.values(), PASS))
        if fused == "b":
            assert same(mixed, plain)
            return
        wanted = built(folder / "a-running", folder / "b-files", PASS).folder
        back = changed(mixed, "back", turn)
        assert same(back, wanted)

    def test_square_ones_are_as_the_others(self, saved: Path) -> None:
        """``down_proj`` is square here, ``gate_up_proj`` is not."""
        folder, shapes = saved / "qwen3_moe", {}
        for seed, name in enumerate("ab"):
            stem = "model.layers.0.mlp.experts."
            shapes = {f"{stem}gate_up_proj": (3, 16, 8), f"{stem}down_proj": (3, 8, 8)}
            values = random_tensors(shapes, seed, torch.float32)
            config = json.loads((folder / "a-running" / "config.json").read_text())
            save_model(Path(name), values, 1, config | {"num_hidden_layers": 1})
        turned = changed(Path("b"), "turned", lambda key, value: (key, value.mT))
        mixed = copied(built(Path("a"), turned, TASK))
        assert same(mixed, built(Path("a"), Path("b"), TASK).folder)

    def test_without_the_outer_prefix(self, saved: Path) -> None:
        folder = saved / "mixtral"
        bare = changed(
            folder / "b-running", "bare", lambda key, value: (key.removeprefix("model."), value)
        )
        mixed = copied(built(folder / "a-files", bare, LINEAR))
        assert same(mixed, built(folder / "a-files", folder / "b-files", LINEAR).folder)

    def test_a_missing_expert_is_told(self, saved: Path) -> None:
        folder = saved / "mixtral"
        lame = changed(
            folder / "b-files",
            "lame",
            lambda key, value: (
                None if "layers.1" in key and "experts.1.w3" in key else (key, value)
            ),
        )
        with pytest.raises(UserError, match=r"tensor 'model.layers.1.*gate_up_proj' is in 'a'"):
            built(folder / "a-running", lame, LINEAR)

    def test_experts_of_no_size(self) -> None:
        stem = "model.layers.0.block_sparse_moe.experts."
        config = LLAMA | {"model_type": "mixtral", "num_hidden_layers": 1, "architectures": None}
        shapes = {f"{stem}{i}.{w}.weight": (0, 4) for i in range(2) for w in ("w1", "w3")}
        save_model(Path("a"), random_tensors(shapes, 1), 1, config)
        running = {"model.layers.0.mlp.experts.gate_up_proj": (2, 0, 4)}
        save_model(Path("b"), random_tensors(running, 1), 1, config)
        with pytest.raises(UserError, match="is in 'a' but not in 'b'"):
            built(Path("a"), Path("b"), LINEAR)


class TestQuantised:
    """Experts of FP8, one by one, and a base that has them fused."""

    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    @pytest.mark.parametrize("some", [".experts.", ".up_proj"], ids=["all", "some"])
    def test_stacked(self, saved: Path, some: str, numerics: str) -> None:
        folder = saved / "qwen3_moe"
        codes, values = {}, {}
        for name, value in tensors(folder / "b-files").items():
            codes[name] = values[name] = value.bfloat16()
            if ".experts." in name and some in name:
                codes[name] = (value * 16).to(torch.float8_e4m3fn)
                codes[f"{name}_scale_inv"] = torch.full((1, 1), 1 / 16)
                values[name] = (codes[name].float() / 16).bfloat16()  # which is exact
        config = json.loads((folder / "b-files" / "config.json").read_text())
        save_model(Path("plain"), values, 1, config)
        said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        save_model(Path("codes"), codes, 2, config | {"quantization_config": said})
        recipe = TASK | {"dtype": "bfloat16"}
        mixed = copied(built(folder / "a-running", Path("codes"), recipe, numerics=numerics))
        plain = copied(built(folder / "a-running", Path("plain"), recipe, numerics=numerics))
        assert same(mixed, plain)


class TestRelatives:
    """Phi-3 has projections in one tensor that Llama has apart."""

    @pytest.mark.parametrize("fused", [(True, False), (False, True)], ids=["into", "out of"])
    def test_projections(self, fused: tuple[bool, bool]) -> None:
        phi3(Path("a"), 1, fused[0])
        phi3(Path("b"), 2, fused[1])
        phi3(Path("c"), 2, fused[0])
        mixed = copied(built(Path("a"), Path("b"), TASK))
        plain = copied(built(Path("a"), Path("c"), TASK))
        assert same(mixed, plain)
        assert tensors(mixed).keys() == tensors(Path("a")).keys()

    def test_through_two_documents(self) -> None:
        """What is put together in one document and cut again in the next is read as it was."""
        phi3(Path("a"), 1, True)
        phi3(Path("b"), 2, False)
        first = TASK | {"name": "first"}
        second = {
            "name": "second",
            "merge_method": "linear",
            "models": [
                {"model": "b", "parameters": {"weight": 0.5}},
                {"model": "first", "parameters": {"weight": 0.5}},
            ],
            "dtype": "float32",
        }
        Path("recipe.lock.json").unlink(missing_ok=True)
        text = "\n---\n".join(map(json.dumps, (first, second)))
        with tuned(**SMALL):
            made = merge(text, sources={"a": "a", "b": "b"}, stages=["second"])
        one, other = apart(tensors(Path("a"))), tensors(Path("b"))
        for name, value in tensors(made.folder).items():
            assert torch.allclose(value, 0.25 * one[name] + 0.75 * other[name], atol=1e-6)

    def test_adapter_of_a_projection(self) -> None:
        """A slice of what an adapter adds is the product of a slice of a factor."""
        phi3(Path("a"), 1, False)
        phi3(Path("b"), 2, True)
        modules = {f"model.layers.{i}.self_attn.qkv_proj": (32, 16) for i in range(2)}
        write_adapter(Path("lora"), factors(modules))
        recipe = TASK | {"models": [{"model": "b+lora", "parameters": {"weight": 1}}]}
        Path("recipe.lock.json").unlink(missing_ok=True)
        with tuned(**SMALL):
            made = merge(json.dumps(recipe), sources={"a": "a", "b": "b", "lora": "lora"})
        whole = tensors(Path("b"))
        for name, (down, up) in {
            m: [load_file("lora/adapter_model.safetensors")[f"base_model.model.{m}.lora_{x}.weight"]
                for x in "AB"] for m in modules
        }.items():  # fmt: skip
            whole[f"{name}.weight"] = whole[f"{name}.weight"] + 2 * up @ down
        for name, value in apart(whole).items():
            assert torch.allclose(tensors(made.folder)[name], value, atol=1e-5), name

    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    @pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
    def test_adapter_of_one_of_them(self, numerics: str, method: str) -> None:
        """What it adds to the tensor that they share is 0 in the others' rows."""
        phi3(Path("a"), 1, True)
        phi3(Path("b"), 2, False)
        one, other = "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj"
        write_adapter(Path("lora"), factors({one: (8, 16), other: (24, 16)}))
        adapted, added = tensors(Path("b")), load_file("lora/adapter_model.safetensors")
        for name in (one, other):
            down, up = (added[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            adapted[f"{name}.weight"] = adapted[f"{name}.weight"] + 2 * up @ down
        save_model(Path("c"), adapted, 2, json.loads(Path("b/config.json").read_text()))
        found = []
        for model in ("b+lora", "c"):
            given = {"model": model, "parameters": {"weight": 0.5}}
            recipe = TASK | {"merge_method": method, "models": [given]}
            Path("recipe.lock.json").unlink(missing_ok=True)
            shutil.rmtree("results", ignore_errors=True)
            with tuned(**SMALL):
                sources = {name: name for name in ("a", "b", "c", "lora")}
                made = merge(json.dumps(recipe), sources=sources, numerics=numerics)
            found.append(tensors(copied(made)))
        assert found[0].keys() == found[1].keys() == tensors(Path("a")).keys()
        assert all(torch.allclose(found[0][n], found[1][n], atol=1e-5) for n in found[0])

    def test_adapter_of_an_expert_where_they_are_fused_is_refused(self, saved: Path) -> None:
        folder = saved / "mixtral"
        table = tensors(folder / "b-files")
        name = next(n for n in table if "experts.1.w1" in n).removesuffix(".weight")
        write_adapter(Path("lora"), factors({name: tuple(table[f"{name}.weight"].shape)}))
        recipe = TASK | {"models": [{"model": "b+lora", "parameters": {"weight": 1}}]}
        places = {"a": str(folder / "a-running"), "b": str(folder / "b-files"), "lora": "lora"}
        with pytest.raises(UserError, match=r"cannot be made of '.*experts.*not all"):
            merge(json.dumps(recipe), sources=places)


def filtered(*rules: tuple[str, float], **changes: Any) -> dict[str, Any]:
    """Return a recipe whose second model has weights by filter, and none elsewhere."""
    weight = [{"filter": name, "value": value} for name, value in rules] + [{"value": 0}]
    return TASK | {"models": [{"model": "b", "parameters": {"weight": weight}}]} | changes


class TestFilters:
    """Projections that share a tensor follow filters as those do that have one each."""

    @pytest.fixture(autouse=True)
    def models(self) -> None:
        for seed, name in enumerate("ab"):
            phi3(Path(name), seed, True)
            phi3(Path(f"{name}-apart"), seed, False)

    def test_each_has_its_own(self) -> None:
        recipe = filtered(("q_proj", 1.0), (".v_proj", 0.5), ("gate_proj", 0.25))
        made = built(Path("a"), Path("b"), recipe)
        assert not [w for w in said(recipe) if "filter" in w]
        found = apart(tensors(copied(made)))
        plain = built(Path("a-apart"), Path("b-apart"), recipe)
        wanted = tensors(plain.folder)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    def test_a_name_that_is_part_of_the_whole(self) -> None:
        """``up_proj`` is in ``gate_up_proj``, as mergekit reads it."""
        recipe = filtered(("up_proj", 1.0))
        made = tensors(built(Path("a"), Path("b"), recipe).folder)
        name = "model.layers.0.mlp.gate_up_proj.weight"
        assert torch.equal(made[name], tensors(Path("b"))[name])
        (told,) = [w for w in said(recipe) if "fused-filter" in w]
        assert "the filter 'up_proj'" in told and "it counts for all of it" in told
        assert "'.up_proj' is the name of the projection alone" in told

    @pytest.mark.parametrize(
        "changes",
        [{"merge_method": "ties"}, {"numerics": "mergekit-0.1.5"}],
        ids=["no sum", "as mergekit"],
    )
    def test_where_it_cannot_be(self, changes: dict[str, Any]) -> None:
        numerics = changes.pop("numerics", "float32") if "numerics" in changes else "float32"
        recipe = filtered(("self_attn.q_proj", 1.0), **changes)
        made = tensors(built(Path("a"), Path("b"), recipe, numerics=numerics).folder)
        name = "model.layers.0.self_attn.qkv_proj.weight"
        assert torch.equal(made[name], tensors(Path("a"))[name])
        (told,) = [w for w in said(recipe, numerics=numerics) if "fused-filter" in w]
        assert "it does not count for any of it" in told

    def test_single_experts(self, saved: Path) -> None:
        recipe = filtered(("experts.1.", 1.0))
        folder = saved / "mixtral"
        fused = copied(built(folder / "a-running", folder / "b-running", recipe))
        alone = copied(built(folder / "a-files", folder / "b-running", recipe))
        again = copied(built(folder / "a-files", fused, PASS))
        assert same(again, alone)


PASS = {"name": "out", "merge_method": "linear", "dtype": "float32", "models": [
    {"model": "a", "parameters": {"weight": 0}}, {"model": "b", "parameters": {"weight": 1}}
]}  # fmt: skip


def said(recipe: dict[str, Any], **config: Any) -> list[str]:
    """Return the warnings of the recipe that was merged last."""
    from shardmerge.plan.decide import load_plan
    from shardmerge.recipe.settings import load_settings

    sources = {"a": "a", "b": "b"}
    settings = load_settings({"recipes": ["recipe.yaml"], "sources": sources, **config})
    return list(load_plan(settings, say=lambda line: None).warnings)
