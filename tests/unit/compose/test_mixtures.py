"""Mixtures assembled and taken apart: tensors by hand, and what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.architectures import save_family
from helpers.models import llama
from helpers.planned import described
from helpers.tiny_tokenizers import WORDS, tokenized
from parity.oracle import load_folder, run_shardmerge
from shardmerge.base.errors import UserError
from shardmerge.package.config import output_config
from shardmerge.plan.decide import load_plan
from shardmerge.plan.description import load_description
from shardmerge.recipe.settings import load_settings

_NUMERICS = pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _experts(*names: str, **values: Any) -> list[dict[str, Any]]:
    return [{"source_model": name, **values} for name in names]


def _mixture(*names: str, **values: Any) -> dict[str, Any]:
    document = {"name": "mix", "base_model": "base", "gate_mode": "random"}
    return document | {"experts": _experts(*names)} | values


def _built(*documents: dict[str, Any], **config: Any) -> dict[str, torch.Tensor]:
    Path("recipe.yaml").write_text("\n---\n".join(map(json.dumps, documents)))
    Path("recipe.lock.json").unlink(missing_ok=True)
    (made,) = run_shardmerge(Path("recipe.yaml"), Path.cwd(), **config).values()
    return made


def _loaded(**config: Any) -> Any:
    """Return what transformers makes of the model that was built, whose names it all knows."""
    from transformers import AutoModelForCausalLM

    plan = load_plan(load_settings({"recipes": ["recipe.yaml"], **config}), say=lambda line: None)
    (build,) = plan.builds.values()
    folder = Path(build.shards[0].output).parent
    tensors = load_folder(folder)
    whole = Path("whole")
    whole.mkdir()
    save_file(tensors, whole / "model.safetensors", {"format": "pt"})
    source = Path(build.files["config.json"])
    text = output_config(source.read_text(), load_description(build.digest), str(source))
    (whole / "config.json").write_text(text)
    model, report = AutoModelForCausalLM.from_pretrained(
        whole, dtype="auto", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model


@_NUMERICS
def test_noise_and_scale_are_each_experts_own(tmp_path: Path, numerics: str) -> None:
    for seed, name in enumerate(["base", "a", "b"]):
        llama(tmp_path / name, seed, layers=2)
    experts = [
        {"source_model": "a", "residual_scale": 0.5},
        {"source_model": "b", "noise_scale": 0.25},
    ]
    made = _built(_mixture(experts=experts), numerics=numerics)
    a, b, base = (load_folder(tmp_path / name) for name in ("a", "b", "base"))
    place = "model.layers.1."
    moe = place + "block_sparse_moe.experts."
    assert torch.equal(made[moe + "0.w1.weight"], a[place + "mlp.gate_proj.weight"])
    assert torch.equal(made[moe + "0.w3.weight"], a[place + "mlp.up_proj.weight"])
    assert torch.equal(made[moe + "0.w2.weight"], a[place + "mlp.down_proj.weight"] * 0.5)
    noise = made[moe + "1.w2.weight"] - b[place + "mlp.down_proj.weight"]
    assert noise.float().std() == pytest.approx(0.25, rel=0.15)
    other = made[moe + "1.w1.weight"] - b[place + "mlp.gate_proj.weight"]
    assert not torch.equal(noise.reshape(-1), other.reshape(-1))
    name = place + "self_attn.q_proj.weight"
    assert torch.equal(made[name], base[name])
    gates = [made[f"model.layers.{i}.block_sparse_moe.gate.weight"] for i in range(2)]
    assert gates[0].shape == (2, 16)
    assert not torch.equal(*gates)


@_NUMERICS
def test_an_expert_may_be_a_document(tmp_path: Path, numerics: str) -> None:
    for seed, name in enumerate(["base", "a", "b"]):
        llama(tmp_path / name, seed, layers=2)
    ties = {
        "name": "merged",
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": name, "parameters": {"weight": 0.5, "density": 0.5}} for name in "ab"],
        "dtype": "float32",
    }
    wanted = _built(ties, numerics=numerics)
    made = _built(ties, _mixture("merged", "a", dtype="float32"), numerics=numerics)
    name = "model.layers.0.block_sparse_moe.experts.0.w2.weight"
    assert torch.equal(made[name], wanted["model.layers.0.mlp.down_proj.weight"])


def test_every_shard_reads_one_models_files(tmp_path: Path) -> None:
    for seed, name in enumerate(["base", "a", "b"]):
        llama(tmp_path / name, seed, layers=4, files=2)
    Path("recipe.yaml").write_text(json.dumps(_mixture("a", "b")))
    plan = load_plan(load_settings({"recipes": ["recipe.yaml"]}), say=lambda line: None)
    assert all(len(job.sources) == 1 for job in plan.shards)
    assert len(plan.shards) == 6


def test_what_a_config_leaves_to_its_architecture_is_said(tmp_path: Path) -> None:
    for seed, name in enumerate(["base", "a", "b"]):
        folder = llama(tmp_path / name, seed, layers=2)
        config = json.loads((folder / "config.json").read_text())
        for key in ("rope_theta", "rms_norm_eps", "num_key_value_heads"):
            del config[key]
        (folder / "config.json").write_text(json.dumps(config))
    description, _ = described(_mixture("a", "b"))
    values = description["config"]
    # a Mixtral means 1e6, 1e-5 and 8
    assert (values["rope_theta"], values["rms_norm_eps"]) == (10000.0, 1e-6)
    assert values["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gpt"}, "there is no architecture 'gpt' of mixtures"),
        ({"architecture": "qwen3"}, "no architecture can have this mixture"),
        ({"architecture": "mixtral", "shared_experts": _experts("a")}, "no architecture can"),
        ({"experts": _experts("a", "wide")}, "tensor 'model.layers.0.mlp.gate_proj.weight' has sh"),
        (
            {"experts": _experts("a", "short")},
            "model 'short' has no tensor 'model.layers.1.mlp.gate_proj.weight'",
        ),
        ({"base_model": "mixed"}, "no architecture can have this mixture"),
    ],
)
def test_what_cannot_be_assembled_is_told(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    for seed, name in enumerate(["base", "a", "b"]):
        llama(tmp_path / name, seed, layers=2)
    llama(tmp_path / "wide", 3, layers=2, inter=32)
    llama(tmp_path / "short", 4, layers=1)
    save_family("mixtral", tmp_path / "mixed", 5)
    with pytest.raises(UserError) as caught:
        _built(_mixture("a", "b") | change)
    assert caught.value.message.startswith(message)
    assert caught.value.where.startswith("recipe.yaml:")


def test_checks_of_mixtures(tmp_path: Path) -> None:
    tokenized(tmp_path / "base", 0, WORDS[:2])
    tokenized(tmp_path / "a", 1, WORDS, spare=-3)
    _, warnings = described(_mixture("a", "a", experts_per_token=1))
    assert [w.rpartition("[")[2] for w in warnings] == ["equal-experts]", "expert-tokenizers]"]
    _, warnings = described(
        _mixture("a", "a", experts=_experts("a", "a", noise_scale=0.1)),
        silence=["expert-tokenizers"],
    )
    assert warnings == []


def test_experts_of_equal_weights(tmp_path: Path) -> None:
    """Whatever they are called; what scales one of them makes it another."""
    for seed, name in ((0, "base"), (1, "a"), (1, "copy")):
        llama(tmp_path / name, seed, layers=2)
    _, warnings = described(_mixture("a", "copy", experts_per_token=1))
    assert len(warnings) == 1 and "all experts have the same weights (a and copy)" in warnings[0]
    for values in ({"residual_scale": 0.5}, {"noise_scale": 0.1}):
        scaled = [{"source_model": "a", **values}, {"source_model": "copy"}]
        _, warnings = described(_mixture("a", "copy", experts=scaled))
        assert warnings == []


def test_prompts_of_the_same_tokens(tmp_path: Path) -> None:
    for seed, name in enumerate(["base", "a", "b"]):
        tokenized(tmp_path / name, seed, WORDS)
    experts = [
        {"source_model": name, "positive_prompts": [text]}
        for name, text in (("a", " the cat"), ("b", " cat the"))
    ]
    document = _mixture(experts=experts, gate_mode="cheap_embed")
    _, (warning,) = described(document)
    assert "are the same tokens in another order" in warning
    assert warning.endswith("[equal-prompts]")


def test_edited_prompts_are_locked_again(tmp_path: Path) -> None:
    for seed, name in enumerate(["base", "a", "b"]):
        tokenized(tmp_path / name, seed, WORDS)

    def gates(word: str) -> tuple[torch.Tensor, dict[str, list[int]]]:
        experts = [
            {"source_model": "a", "positive_prompts": ["the cat"]},
            {"source_model": "b", "positive_prompts": [word]},
        ]
        document = _mixture(experts=experts, gate_mode="cheap_embed", dtype="float32")
        Path("recipe.yaml").write_text(json.dumps(document))
        (made,) = run_shardmerge(Path("recipe.yaml"), Path.cwd()).values()
        lock = json.loads(Path("recipe.lock.json").read_text())
        return (
            made["model.layers.1.block_sparse_moe.gate.weight"],
            lock["sources"]["base"]["prompts"],
        )

    first, known = gates("dog")
    assert sorted(known) == ["dog", "the cat"]
    second, known = gates("red")
    assert sorted(known) == ["red", "the cat"]
    assert torch.equal(first[0], second[0])
    embedding = load_folder(tmp_path / "base")["model.embed_tokens.weight"]
    (row,) = embedding[known["red"]].double()
    torch.testing.assert_close(second[1], (row / row.norm()).float())


@_NUMERICS
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe"])
def test_an_expert_becomes_a_dense_model(tmp_path: Path, family: str, numerics: str) -> None:
    _save_mixture(family, tmp_path / "moe")
    made = _built({"name": "d", "base_model": "moe", "take_expert": 1}, numerics=numerics)
    source = load_folder(tmp_path / "moe")
    place = "model.layers.2."
    names = {
        "mixtral": [f"block_sparse_moe.experts.1.{w}" for w in ("w1", "w3", "w2")],
        "qwen3_moe": [f"mlp.experts.1.{p}_proj" for p in ("gate", "up", "down")],
        "qwen2_moe": [f"mlp.experts.1.{p}_proj" for p in ("gate", "up", "down")],
    }[family]
    for own, dense in zip(names, ("gate", "up", "down"), strict=True):
        found = made[f"{place}mlp.{dense}_proj.weight"]
        assert torch.equal(found, source[f"{place}{own}.weight"])
    model = _loaded(numerics=numerics)
    assert model.config.model_type == {"mixtral": "mistral"}.get(family, family[:5])
    assert not hasattr(model.config, "num_experts_per_tok")
    wanted = 1e6 if family == "mixtral" else 10000.0
    assert model.config.rope_parameters["rope_theta"] == wanted


@_NUMERICS
def test_experts_of_a_stack_are_cut_out(tmp_path: Path, numerics: str) -> None:
    _save_mixture("mixtral", tmp_path / "moe")
    _fuse(tmp_path / "moe")
    fused = load_folder(tmp_path / "moe")
    made = _built({"base_model": "moe", "take_expert": 2}, numerics=numerics)
    both, down = (fused[f"model.layers.1.mlp.experts.{p}_proj"] for p in ("gate_up", "down"))
    half = both.shape[1] // 2
    assert torch.equal(made["model.layers.1.mlp.gate_proj.weight"], both[2, :half])
    assert torch.equal(made["model.layers.1.mlp.up_proj.weight"], both[2, half:])
    assert torch.equal(made["model.layers.1.mlp.down_proj.weight"], down[2])
    document = {"base_model": "moe", "keep_experts": [2, 0], "experts_per_token": 1}
    made = _built(document, numerics=numerics)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(made[name], fused[name][[2, 0]])
    model = _loaded(numerics=numerics)
    assert model.config.num_local_experts == 2


@_NUMERICS
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_kept_experts_get_their_rows_of_the_router(
    tmp_path: Path, family: str, numerics: str
) -> None:
    _save_mixture(family, tmp_path / "moe")
    made = _built({"base_model": "moe", "keep_experts": [2, 0]}, numerics=numerics)
    source = load_folder(tmp_path / "moe")
    inner = "block_sparse_moe" if family == "mixtral" else "mlp"
    place = f"model.layers.3.{inner}."
    assert torch.equal(made[place + "gate.weight"], source[place + "gate.weight"][[2, 0]])
    experts = [n.partition("experts.0.")[2] for n in made if n.startswith(place + "experts.0.")]
    assert len(experts) == 3
    for rest in experts:
        for new, old in enumerate([2, 0]):
            found = made[f"{place}experts.{new}.{rest}"]
            assert torch.equal(found, source[f"{place}experts.{old}.{rest}"])
    model = _loaded(numerics=numerics)
    count = getattr(model.config, "num_local_experts", None) or model.config.num_experts
    assert (count, model.config.num_experts_per_tok) == (2, 2)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"base_model": "moe", "take_expert": 3}, "'moe' has 3 experts, and no expert 3"),
        ({"base_model": "moe", "keep_experts": [0]}, "tokens of 'moe' are sent to 2 experts, but"),
        ({"base_model": "dense", "keep_experts": [0]}, "model 'dense' has no experts that are kn"),
    ],
)
def test_experts_that_are_not_there(tmp_path: Path, document: dict[str, Any], message: str) -> None:
    _save_mixture("mixtral", tmp_path / "moe")
    llama(tmp_path / "dense", 0)
    with pytest.raises(UserError) as caught:
        _built(document)
    assert caught.value.message.startswith(message)


def test_a_mixture_that_was_assembled_gives_its_experts_back(tmp_path: Path) -> None:
    for seed, name in enumerate(["base", "a", "b"]):
        llama(tmp_path / name, seed, layers=2)
    made = _built(_mixture("a", "b"), {"name": "x", "base_model": "mix", "take_expert": 1})
    base, b = load_folder(tmp_path / "base"), load_folder(tmp_path / "b")
    assert made.keys() == base.keys()
    for name, tensor in made.items():
        assert torch.equal(tensor, b[name] if ".mlp." in name else base[name]), name
    model = _loaded()
    assert (model.config.model_type, model.config.intermediate_size) == ("mistral", 24)


_MOE = {
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig"),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig"),
}


def _save_mixture(family: str, folder: Path) -> None:
    """Write a mixture of 3 experts a layer, of which tokens are sent to 2."""
    import transformers

    if family == "mixtral":
        save_family(family, folder, 7)
        return
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
    sizes |= {"num_experts": 3, "intermediate_size": 48, "shared_expert_intermediate_size": 40}
    if family == "qwen3_moe":
        sizes |= {"head_dim": 8}
    model_class, config_class = (getattr(transformers, name) for name in _MOE[family])
    torch.manual_seed(7)
    model_class(config_class(**sizes)).to(torch.float16).save_pretrained(folder)


def _fuse(folder: Path) -> None:
    """Store a Mixtral's experts as transformers holds them: a layer's in two tensors."""
    tensors = load_folder(folder)
    made = {n: t for n, t in tensors.items() if "block_sparse_moe" not in n}
    for layer in range(4):
        moe, new = f"model.layers.{layer}.block_sparse_moe.", f"model.layers.{layer}.mlp."
        w1, w2, w3 = (
            torch.stack([tensors[f"{moe}experts.{e}.{w}.weight"] for e in range(3)])
            for w in ("w1", "w2", "w3")
        )
        made[new + "gate.weight"] = tensors[moe + "gate.weight"]
        made[new + "experts.gate_up_proj"] = torch.cat([w1, w3], dim=1)
        made[new + "experts.down_proj"] = w2
    save_file(made, folder / "model.safetensors", {"format": "pt"})
