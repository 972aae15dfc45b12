"""Mixtures of experts beside mergekit-moe 0.1.5: the same bits where nothing is random."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.architectures import save_family
from helpers.tiny_tokenizers import WORDS, bpe, save_tokenizer
from parity.oracle import differing_bits, load_folder, run_shardmerge
from shardmerge.base.files import load_json
from shardmerge.benchmark.hidden import read_prompts
from shardmerge.package.config import output_config
from shardmerge.plan.decide import load_plan
from shardmerge.plan.description import load_description
from shardmerge.recipe.settings import load_settings

#: Keys of a configuration that say nothing of the model.
_IDLE = ("transformers_version", "_name_or_path", "use_cache", "pretraining_tp", "mlp_bias")
_PROMPTS = (["the cat sat", "a dog"], ["big red dog", "ran"], ["sat", "the big cat ran"])


def _models(folder: Path, family: str, count: int) -> None:
    for seed, name in enumerate(["base", *"abcd"[:count]]):
        save_family(family, folder / name, seed)
        made = bpe(WORDS, {"<s>": True, "</s>": True})
        save_tokenizer(folder / name, made, bos_token="<s>", eos_token="</s>")


def _recipe(folder: Path, **values: Any) -> Path:
    experts = [
        {"source_model": name, "positive_prompts": prompts}
        for name, prompts in zip("abc", _PROMPTS, strict=True)
    ]
    experts[0] |= {"negative_prompts": ["red", "the dog"], "residual_scale": 0.3}
    document = {"base_model": "base", "gate_mode": "cheap_embed", "experts": experts} | values
    path = folder / "made.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def _shared(**values: Any) -> dict[str, Any]:
    return {"shared_experts": [{"source_model": "a", "residual_scale": 0.5, **values}]}


def _mergekit(recipe: Path, out: Path) -> Path:
    from mergekit.io.tasks import LoaderCache
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build

    LoaderCache().loaders.clear()
    old = Path.cwd()
    os.chdir(recipe.parent)
    try:
        config = MoEMergeConfig.model_validate(yaml.safe_load(recipe.read_text()))
        build(config, str(out), MergeOptions(quiet=True), device="cpu")
    finally:
        os.chdir(old)
    return out


def _packaged(recipe: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Path:
    """Build the recipe's model in-process, with config.json; return its folder."""
    monkeypatch.chdir(recipe.parent)
    settings = {"numerics": "mergekit-0.1.5", **config}
    run_shardmerge(recipe, recipe.parent, checked=True, **settings)
    plan = load_plan(load_settings({"recipes": [str(recipe)], **settings}), say=lambda line: None)
    (build,) = plan.builds.values()
    folder = (recipe.parent / build.shards[0].output).parent
    source = Path(build.files["config.json"])
    text = output_config(source.read_text(), load_description(build.digest), str(source))
    (folder / "config.json").write_text(text)
    if len(build.shards) > 1:
        from safetensors import safe_open

        weights = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                weights |= dict.fromkeys(file.keys(), path.name)
        index = {"metadata": {}, "weight_map": weights}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _loaded(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    config = {k: v for k, v in model.config.to_dict().items() if k not in _IDLE}
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    return dict(model.state_dict()), config


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("llama", {}),
        ("mistral", {"dtype": "bfloat16", "experts_per_token": 1}),
        ("llama", {"architecture": "qwen", **_shared(positive_prompts=["cat", "red dog"])}),
        ("qwen2", _shared(positive_prompts=["cat"], negative_prompts=["dog"])),
        ("qwen3", {"dtype": "float32"}),
    ],
    ids=["mixtral-llama", "mixtral-mistral", "qwen-llama", "qwen-qwen2", "qwen3"],
)
def test_the_same_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, values: dict[str, Any]
) -> None:
    _models(tmp_path, family, 3)
    recipe = _recipe(tmp_path, **values)
    ours, config = _loaded(_packaged(recipe, monkeypatch))
    theirs, wanted = _loaded(_mergekit(recipe, tmp_path / "theirs"))
    assert differing_bits(ours, theirs) == {}
    assert config == {k: config.get(k) if k in _LEFT else v for k, v in wanted.items()}


#: What mergekit leaves in a configuration of what another architecture has no use for.
_LEFT = ("attention_bias",)


@pytest.mark.parametrize("values", [{}, _shared()], ids=["routed", "shared"])
def test_deepseek_has_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    # transformers has no class for it, so that nothing is loaded
    _models(tmp_path, "llama", 3)
    recipe = _recipe(tmp_path, architecture="deepseek", **values)
    ours = _packaged(recipe, monkeypatch)
    theirs = _mergekit(recipe, tmp_path / "theirs")
    assert differing_bits(load_folder(ours), load_folder(theirs)) == {}
    config, wanted = load_json(ours / "config.json"), load_json(theirs / "config.json")
    for key in wanted:
        if key not in _IDLE and key in config:
            assert config[key] == wanted[key], key
    assert {"auto_map", "n_routed_experts", "n_shared_experts", "scoring_func"} <= config.keys()


def test_embedding_gates_in_float32_round_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _models(tmp_path, "mistral", 3)
    recipe = _recipe(tmp_path, dtype="float32")
    ours, _ = _loaded(_packaged(recipe, monkeypatch, numerics="float32"))
    theirs, _ = _loaded(_mergekit(recipe, tmp_path / "theirs"))
    gates = [name for name in ours if name.endswith("gate.weight")]
    assert gates
    for name in gates:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg"])
def test_hidden_states_are_the_same(tmp_path: Path, mode: str) -> None:
    from mergekit.common import ModelReference
    from mergekit.moe.config import Expert
    from mergekit.moe.router import get_gate_params
    from transformers import AutoTokenizer

    _models(tmp_path, "mistral", 1)
    base = ModelReference.model_validate(str(tmp_path / "base"))
    sides = [
        (prompts, ["red", "the dog"][: number % 2 * 2]) for number, prompts in enumerate(_PROMPTS)
    ]
    experts = [
        Expert(source_model=base, positive_prompts=good, negative_prompts=bad)
        for good, bad in sides
    ]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.padding_side, tokenizer.pad_token_id = "left", tokenizer.bos_token_id
    threads = torch.get_num_threads()
    try:
        read_prompts(tmp_path / "base", sides, mode, tmp_path / "made.safetensors")
        with torch.no_grad():
            wanted = get_gate_params(base, tokenizer, experts, mode, device="cpu")
    finally:
        torch.set_num_threads(threads)
    found = load_folder(tmp_path)
    for layer in range(4):
        assert torch.equal(found[f"layers.{layer}"], wanted[layer].float())
