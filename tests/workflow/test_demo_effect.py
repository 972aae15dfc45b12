"""What the demo claims: the recipe brings one skill over and not another.

The merge here is the flagship's formula in plain torch, independent of the library's engine.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "resources" / "demo"
LAYERS = 12
NAMES = (
    "llama2-tiny midnight-tiny miqu-tiny stranger-tiny midnight-norms-tiny miqu-smooth-tiny"
).split()


def weights(name: Any) -> dict[Any, Any]:
    from safetensors.torch import load_file

    files = sorted((MODELS / name).glob("*.safetensors"))
    return {key: tensor.float() for file in files for key, tensor in load_file(file).items()}


def donor_share(key: Any, filters: Any) -> Any:
    """Return the donor's weight for a tensor, from the recipe's filters and gradients."""
    value = next(f["value"] for f in filters if f.get("filter", "") in key)
    if not isinstance(value, list):
        return value
    layer = int(key.split(".")[2]) if ".layers." in key else 0
    scaled = layer / (LAYERS - 1) * (len(value) - 1)
    low = int(scaled)
    high = min(low + 1, len(value) - 1)
    return (1 - (scaled - low)) * value[low] + (scaled - low) * value[high]


@cache
def model(name: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()


@cache
def merged(finetune: Any, whole: Any = False) -> Any:
    """Return the recipient plus the flagship's share of a fine-tune's task vector, or all of it."""
    recipe = ROOT / "config" / "recipes" / "miquplus-midnight-tiny.yaml"
    _, final = yaml.safe_load_all(recipe.read_text())
    filters = final["models"][1]["parameters"]["weight"]
    base, tuned, recipient = weights("llama2-tiny"), weights(finetune), weights("miqu-tiny")
    made = {}
    for key, tensor in recipient.items():
        share = 1 if whole else donor_share(key, filters)
        made[key] = (tensor + share * (tuned[key] - base[key])).half().float()
    result = type(model("miqu-tiny"))(model("miqu-tiny").config).float().eval()
    result.load_state_dict(made)
    return result


def accuracy(of: Any, task: Any) -> Any:
    from tools.demo.skills import questions
    from tools.demo.training import choice_accuracy

    return choice_accuracy(of, questions(task))


class TestEffect:
    def test_the_recipient_has_c_and_the_fine_tune_has_b(self) -> None:
        assert accuracy(model("miqu-tiny"), "B") <= 0.6
        assert accuracy(model("miqu-tiny"), "C") >= 0.95
        assert accuracy(model("midnight-tiny"), "B") >= 0.95
        assert accuracy(model("midnight-tiny"), "C") <= 0.6
        assert accuracy(model("llama2-tiny"), "B") <= 0.6
        assert accuracy(model("llama2-tiny"), "C") <= 0.6

    def test_the_merged_model_has_both(self) -> None:
        model = merged("midnight-tiny")
        assert accuracy(model, "B") >= 0.7
        assert accuracy(model, "C") >= 0.95

    @pytest.mark.parametrize("task", "KRN")
    def test_the_merged_model_keeps_the_plain_tasks(self, task: str) -> None:
        assert accuracy(merged("midnight-tiny"), task) >= 0.95


class TestNegativeControl:
    def test_the_stranger_has_a_skill_that_no_other_has(self) -> None:
        assert accuracy(model("stranger-tiny"), "D") >= 0.95
        for name in ("llama2-tiny", "midnight-tiny", "miqu-tiny"):
            assert accuracy(model(name), "D") <= 0.3

    def test_the_recipe_does_not_bring_it_over(self) -> None:
        assert accuracy(merged("stranger-tiny"), "D") <= 0.4
        assert accuracy(merged("stranger-tiny"), "C") >= 0.95

    def test_the_whole_task_vector_does_and_harms_the_recipient(self) -> None:
        whole = merged("stranger-tiny", whole=True)
        assert accuracy(whole, "D") >= 0.95
        assert accuracy(whole, "C") <= 0.7


class TestModels:
    @pytest.mark.parametrize("name", NAMES)
    def test_transformers_loads_them_and_they_generate(self, name: str) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        prompt = tokenizer("Rabc=", return_tensors="pt")
        tokens = model(name).generate(**prompt, max_new_tokens=4)
        assert tokenizer.decode(tokens[0], skip_special_tokens=True) == "Rabc=cba."
        assert tokenizer.model_max_length == model(name).config.max_position_embeddings

    def test_the_trainers_tokens_are_the_tokenizers(self) -> None:
        from transformers import AutoTokenizer

        from tools.demo.training import encode

        tokenizer = AutoTokenizer.from_pretrained(MODELS / "miqu-tiny")
        assert tokenizer("Kabc=abc.Dlkj=")["input_ids"] == encode("Kabc=abc.Dlkj=")


class TestSmoothing:
    @pytest.mark.parametrize("strength", [0.5, 0.75])
    def test_factors_are_the_papers_and_the_function_stays(self, strength: float) -> None:
        import torch

        from tools.demo.smoothing import smoothed
        from tools.demo.training import encode

        plain = model("miqu-tiny")
        tokens = torch.tensor([encode("Kabc=abc.Cfgh="), encode("Rlkj=jkl.Nabc=")])
        before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        seen = {}
        mlp = plain.model.layers[7].mlp
        hook = mlp.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
        with torch.no_grad():
            logits = plain(input_ids=tokens).logits
            hook.remove()
            made = smoothed(plain, tokens, strength)
            assert torch.allclose(made(input_ids=tokens).logits, logits, atol=1e-4)
        assert all(torch.equal(before[k], tensor) for k, tensor in plain.state_dict().items())
        gate, up = mlp.gate_proj.weight.abs(), mlp.up_proj.weight.abs()
        activations = seen["x"].abs().flatten(0, 1).max(0).values
        weights = torch.maximum(gate.max(0).values, up.max(0).values)
        factor = activations**strength / weights ** (1 - strength)
        layer, smooth = plain.model.layers[7], made.model.layers[7]
        norms = [x.post_attention_layernorm.weight for x in (layer, smooth)]
        assert torch.allclose(norms[0] / norms[1], factor, rtol=1e-5)
        for name in ("gate_proj", "up_proj"):
            readers = [getattr(x.mlp, name).weight for x in (layer, smooth)]
            assert torch.allclose(readers[0] * factor, readers[1], rtol=1e-5)
        assert torch.equal(made.model.norm.weight, plain.model.norm.weight)


@pytest.mark.slow
class TestTraining:
    def test_a_short_training_is_reproducible_and_whole_on_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from shardmerge.base.errors import UserError
        from tools.demo import checkpoint, training

        short = {
            name: replace(m, shard_size=90_000, course=m.course and training.Course(3, 1e-3))
            for name, m in training.FAMILY.items()
        }
        for module in (training, checkpoint):
            monkeypatch.setattr(module, "FAMILY", short)
        torch.set_num_threads(1)
        folders = [tmp_path / "one", tmp_path / "two"]
        for folder in folders:
            folder.mkdir()
            made = training.train_family(3, ["miqu-smooth-tiny"], lambda text: None)
            assert list(made) == ["llama2-tiny", "miqu-tiny", "miqu-smooth-tiny"]
            checkpoint.save_model("miqu-tiny", made["miqu-tiny"], folder / "m")
            checkpoint.save_model("miqu-smooth-tiny", made["miqu-smooth-tiny"], folder / "s")
        one, two = (
            {str(f.relative_to(d)): f.read_bytes() for f in d.rglob("*") if f.is_file()}
            for d in folders
        )
        assert one == two
        assert len([name for name in one if name.endswith(".safetensors")]) > 20
        assert AutoModelForCausalLM.from_pretrained(folders[0] / "m").config.vocab_size == 23
        with pytest.raises(UserError, match="exists already"):
            checkpoint.save_model("miqu-tiny", made["miqu-tiny"], folders[0] / "m")
        assert sorted(path.name for path in folders[0].iterdir()) == ["m", "s"]
