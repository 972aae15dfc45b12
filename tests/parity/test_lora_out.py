"""Extracted adapters: peft loads them, and mergekit-extract-lora misses as much."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.adapter_cases import factors, write_adapter
from helpers.built_adapter import extract
from helpers.models import llama_shapes, random_tensors, save_model
from shardmerge.base.errors import UserError

SHAPES = llama_shapes(2)
MATRICES = [n for n, s in SHAPES.items() if ".layers." in n and len(s) == 2]
TOKENS = torch.arange(12)[None]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tuned(rank: int | None = None, changed: tuple[str, ...] = (), size: float = 0.05) -> Any:
    """Write ``base`` and ``tuned``, which differs in all matrices of the layers, and in others."""
    base = random_tensors(SHAPES, 0, torch.float32)
    generator = torch.Generator().manual_seed(1)

    def update(shape: tuple[int, ...]) -> torch.Tensor:
        if rank is None or len(shape) == 1:
            return torch.randn(shape, generator=generator) * size
        left = torch.randn(shape[0], rank, generator=generator) * size
        return left @ torch.randn(rank, shape[1], generator=generator)

    changes = {n: update(SHAPES[n]) for n in (*MATRICES, *changed)}
    save_model(Path("base"), base, files=2)
    save_model(Path("tuned"), {n: t + changes.get(n, 0) for n, t in base.items()}, files=3)
    return changes


def logits(folder: str | Path, adapter: Path | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def document(**keys: Any) -> dict[str, Any]:
    return {"name": "out", "extract_lora": {"model": "tuned", "base_model": "base", **keys}}


def test_an_update_of_the_rank_is_the_model_again() -> None:
    tuned(rank=3)
    adapter, records = extract(document(rank=8))
    assert {m.rank for record in records for m in record.modules} == {3}
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 3
    assert torch.allclose(logits("base", adapter), logits("tuned"), atol=1e-4)


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_a_full_rank_with_saved_modules_is_the_model_again(alpha: float | None) -> None:
    others = ("model.norm.weight", "model.embed_tokens.weight", "lm_head.weight")
    norms = tuple(n for n in SHAPES if n.endswith("layernorm.weight"))
    tuned(changed=(*others, *norms))
    saved = ["norm", "lm_head", "input_layernorm", "post_attention_layernorm", "embed_tokens"]
    adapter, _ = extract(document(rank=64, modules_to_save=saved, alpha=alpha))
    assert torch.allclose(logits("base", adapter), logits("tuned"), atol=1e-4)


def test_embeddings_have_factors_where_they_are_asked_for() -> None:
    tuned(rank=2, changed=("model.embed_tokens.weight", "lm_head.weight"))
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter, _ = extract(document(rank=4, modules=[*modules, "embed_tokens", "lm_head"]))
    assert torch.allclose(logits("base", adapter), logits("tuned"), atol=1e-4)


def test_ranks_that_differ_are_patterns() -> None:
    changes = tuned()
    adapter, records = extract(document(rank=16, energy=0.8))
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] != {}
    for record in (m for one in records for m in one.modules):
        values = np.linalg.svd(changes[f"{record.name}.weight"].double(), compute_uv=False)
        shares = np.cumsum(values**2) / (values**2).sum()
        assert record.rank == int((shares < 0.8).sum()) + 1
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), adapter)
    merged = model.merge_and_unload().state_dict()
    base = load_all("base")
    for record in (m for one in records for m in one.modules):
        name = f"{record.name}.weight"
        missed = merged[name].float() - base[name] - changes[name]
        assert float(missed.norm()) == pytest.approx(record.error, rel=1e-3)


def load_all(folder: str) -> dict[str, torch.Tensor]:
    return {
        k: v for f in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(f).items()
    }


def test_mergekit_misses_as_much_in_the_same_subspace(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner
    from mergekit.scripts import extract_lora

    # its card asks the Hub
    monkeypatch.setattr(extract_lora, "generate_card_lora", lambda *args, **options: "")
    tuned()
    ours, _ = extract(document(rank=4))
    options = ["--model=tuned", "--base-model=base", "--out-path=theirs", "--max-rank=4"]
    done = CliRunner().invoke(extract_lora.main, [*options, "--exclude-regex=embed_tokens|lm_head"])
    assert done.exit_code == 0, done.output
    one, other = (load_file(f / "adapter_model.safetensors") for f in (ours, Path("theirs")))
    for name in MATRICES:
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        products = [x[f"{prefix}B.weight"] @ x[f"{prefix}A.weight"] for x in (one, other)]
        assert torch.allclose(*products, atol=1e-5)
        a, theirs = (x[f"{prefix}A.weight"] for x in (one, other))
        shown, _ = torch.linalg.qr(theirs.t())
        assert torch.allclose(a @ shown @ shown.t(), a, atol=1e-5)


def test_two_runs_write_the_same_bytes() -> None:
    tuned()
    adapter, _ = extract(document(rank=4))
    first = (adapter / "adapter_model.safetensors").read_bytes()
    extract(document(rank=4))
    assert (adapter / "adapter_model.safetensors").read_bytes() == first


class TestManyToOne:
    """A merge of adapters, written as one."""

    modules: ClassVar = {n.removesuffix(".weight"): SHAPES[n] for n in MATRICES}

    def _recipe(self, **keys: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        save_model(Path("base"), random_tensors(SHAPES, 0, torch.float32), files=2)
        for seed, rank in ((1, 2), (2, 3)):
            tensors = factors(self.modules, rank=rank, seed=seed)
            write_adapter(Path(f"lora{seed}"), tensors, r=rank, lora_alpha=4)
        models = [
            {"model": "base+lora1", "parameters": {"weight": 0.75}},
            {"model": "base+lora2", "parameters": {"weight": -0.5}},
        ]
        merge = {
            "name": "both",
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": models,
            "dtype": "float32",
        }
        return merge, {
            "name": "out",
            "extract_lora": {"model": "both", "base_model": "base", **keys},
        }

    @pytest.mark.parametrize("how", ["exact", "concatenate"])
    def test_alignment_before_ties(self, how: str) -> None:
        merge, asked = self._recipe(align="knots", decomposition=how)
        merge |= {"merge_method": "ties", "parameters": {"density": 0.5, "normalize": False}}
        merge["models"][1]["parameters"]["weight"] = 0.5
        adapter, records = extract(merge, asked)
        made = load_file(adapter / "adapter_model.safetensors")
        for record in (m for one in records for m in one.modules):
            assert record.rank <= 5
            updates = []
            for seed, rank in ((1, 2), (2, 3)):
                own = load_file(f"lora{seed}/adapter_model.safetensors")
                b, a = (own[f"base_model.model.{record.name}.lora_{x}.weight"] for x in "BA")
                updates.append(4 / rank * b.double() @ a.double())
            u, s, v = torch.linalg.svd(torch.cat(updates, dim=1), full_matrices=False)
            parts = []
            for part, weight in zip(v[:5].chunk(2, dim=1), (0.75, 0.5), strict=True):
                count = int(0.5 * part.numel())
                least = part.abs().flatten().sort(descending=True).values[count - 1]
                parts.append(weight * part * (part.abs() >= least))
            sign = sum(parts).sign()
            wanted = (u[:, :5] * s[:5]) @ sum(part * (part.sign() == sign) for part in parts)
            b, a = (made[f"base_model.model.{record.name}.lora_{x}.weight"].double() for x in "BA")
            assert float((b @ a - wanted).norm() / wanted.norm()) < 1e-3
        assert logits("base", adapter).isfinite().all()

    def test_a_sum_needs_no_alignment(self) -> None:
        with pytest.raises(UserError, match="is no merge of LoRA adapters of 'base' by a method"):
            extract(*self._recipe(align="knots"))

    def _wanted(self, module: str) -> torch.Tensor:
        total = torch.zeros(self.modules[module], dtype=torch.float64)
        for seed, rank, weight in ((1, 2, 0.75), (2, 3, -0.5)):
            own = load_file(f"lora{seed}/adapter_model.safetensors")
            b, a = (own[f"base_model.model.{module}.lora_{x}.weight"].double() for x in "BA")
            total += weight * 4 / rank * b @ a
        return total

    def test_concatenation_is_their_sum(self) -> None:
        adapter, records = extract(*self._recipe(decomposition="concatenate"))
        made = load_file(adapter / "adapter_model.safetensors")
        assert {m.rank for record in records for m in record.modules} == {5}
        for module in self.modules:
            b, a = (made[f"base_model.model.{module}.lora_{x}.weight"].double() for x in "BA")
            assert a.shape[0] == 5
            assert torch.allclose(b @ a, self._wanted(module), rtol=1e-6, atol=1e-7)
        assert logits("base", adapter).isfinite().all()

    def test_concatenated_factors_are_the_adapters_own(self) -> None:
        adapter, _ = extract(*self._recipe(decomposition="concatenate"))
        made = load_file(adapter / "adapter_model.safetensors")
        own = load_file("lora1/adapter_model.safetensors")
        for module in self.modules:
            name = f"base_model.model.{module}.lora_A.weight"
            assert torch.equal(made[name][:2], own[name])

    def test_singular_values_make_a_lower_rank(self) -> None:
        adapter, records = extract(*self._recipe(rank=3))
        made = load_file(adapter / "adapter_model.safetensors")
        for record in (m for one in records for m in one.modules):
            wanted = self._wanted(record.name)
            values = np.linalg.svd(wanted.numpy(), compute_uv=False)
            b, a = (made[f"base_model.model.{record.name}.lora_{x}.weight"].double() for x in "BA")
            best = float(np.sqrt((values[3:] ** 2).sum()))
            assert float((b @ a - wanted).norm()) == pytest.approx(best, rel=1e-4, abs=1e-6)
            assert record.error == pytest.approx(best, rel=1e-4, abs=1e-6)

    def test_it_is_read_by_shardmerge_again(self) -> None:
        adapter, _ = extract(*self._recipe(decomposition="concatenate"))
        merge = {"merge_method": "passthrough", "models": [{"model": f"base+{adapter}"}]}
        from shardmerge.plan.decide import load_plan
        from shardmerge.recipe.settings import load_settings

        Path("again.yaml").write_text(json.dumps({"name": "again", **merge}))
        plan = load_plan(load_settings({"recipes": ["again.yaml"]}), say=lambda line: None)
        assert plan.builds["again"].shards


def test_conv1d_layers_of_gpt2_are_turned() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained("base")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".h." in name and tensor.ndim == 2:
                tensor += 0.1 * torch.randn(len(tensor), 2) @ torch.randn(2, tensor.shape[1])
    model.save_pretrained("tuned")
    adapter, _ = extract(document(rank=4))
    assert torch.allclose(logits("base", adapter), logits("tuned"), atol=1e-4)


class TestExperts:
    """Adapters of experts, which transformers keeps in one tensor and checkpoints may not."""

    def _models(self, config: Any, parts: str) -> None:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained("base")
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if re.search(parts, name):
                    left = torch.randn(*tensor.shape[:-1], 2)
                    right = torch.randn(*tensor.shape[:-2], 2, tensor.shape[-1])
                    tensor += 0.05 * left @ right
        model.save_pretrained("tuned")

    def test_experts_that_are_stored_one_by_one(self) -> None:
        from transformers import MixtralConfig

        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}
        self._models(MixtralConfig(vocab_size=32, **sizes, **heads), "experts|q_proj")
        adapter, records = extract(document(rank=4))
        names = [m.name for record in records for m in record.modules]
        assert any("experts.2.w3" in name for name in names)
        assert torch.allclose(logits("base", adapter), logits("tuned"), atol=1e-4)

    @pytest.mark.parametrize("by", ["modules", "merge"])
    def test_experts_of_which_some_are_the_bases(self, by: str) -> None:
        """peft stacks the factors of a layer's experts: those that are the base's have zeros."""
        from transformers import MixtralConfig

        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}
        self._models(MixtralConfig(vocab_size=32, **sizes, **heads), "nothing")
        (path,) = Path("tuned").glob("*.safetensors")
        tensors = load_file(path)
        for name in tensors:
            if re.search(r"experts\.(1\.w1|2\.w2)\.", name):
                rows, columns = tensors[name].shape
                tensors[name] += 0.05 * torch.randn(rows, 2) @ torch.randn(2, columns)
        save_file(tensors, path, {"format": "pt"})
        changed = ["experts.1.w1", "experts.2.w2"]
        weight = [{"filter": one, "value": 1} for one in changed] + [{"value": 0}]
        merge = {
            "name": "some",
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": "tuned", "parameters": {"weight": weight}}],
        }
        recipes = {
            "modules": [document(rank=4, modules=changed)],
            "merge": [merge, document(rank=4, model="some")],
        }
        adapter, records = extract(*recipes[by])
        made = [m for record in records for m in record.modules]
        assert [m.rank for m in made] == [4] * 2 * 3 * 3
        assert sum(m.norm > 0 for m in made) == 4
        assert torch.allclose(logits("base", adapter), logits("tuned"), atol=1e-4)

    def test_experts_that_are_stored_as_one(self) -> None:
        from transformers import GptOssConfig

        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}
        more = {"num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2}
        self._models(
            GptOssConfig(vocab_size=32, **sizes, **heads, **more),
            r"experts\.(gate_up|down)_proj$|q_proj.weight",
        )
        adapter, records = extract(document(rank=4))
        kept = [m.kept for record in records for m in record.modules if m.kept]
        assert kept == [(2, 2, 2)] * 4
        assert torch.allclose(logits("base", adapter), logits("tuned"), atol=1e-4)
