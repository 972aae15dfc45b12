"""Architectures, from tensor names alone: beside mergekit 0.1.5, and loaded by transformers."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from oracle import differing_bits
from safetensors.torch import load_file, save_file
from test_slices import both, place

from helpers.architectures import FAMILIES, load_family, save_family
from helpers.built_model import merge
from shardmerge.compose.architecture.modules import assign
from shardmerge.compose.architecture.names import is_before, is_head, layer_of

#: What mergekit 0.1.5 with today's transformers cannot take, and what it says.
REFUSED = {
    "falcon_7b": "ln_attn.bias required but not present",  # knows the layers of the 40B only
    "gemma3vl": "required but not present",  # expects names of an older transformers
    "t5": "required but not present",  # knows gated feed-forward layers only
}
#: It sets the number of layers and leaves the list of their types: transformers refuses the config.
UNSTACKED = ("qwen2", "qwen3", "gemma2", "gemma3")
#: How tensors of a layer are named, where not ``layers.1.``.
LAYER_1 = {"gpt2": "h.1.", "falcon": "h.1.", "falcon_7b": "h.1.", "t5": "block.1."}
LAYERED = [family for family in FAMILIES if family not in ("llava", "gemma3vl", "t5")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("architectures")
    for family in FAMILIES:
        for seed, model in enumerate("abc"):
            save_family(family, root / family / model, seed)
    return root


def blend(family: str) -> dict:
    """A document with a gradient and a filter."""
    rules = [{"filter": LAYER_1.get(family, "layers.1."), "value": 0.25}, {"value": [0.7, 0.1]}]
    return {
        "name": "out",
        "merge_method": "task_arithmetic",
        "base_model": f"{family}/a",
        "models": [
            {"model": f"{family}/b", "parameters": {"weight": [0.2, 1.0, 0.5]}},
            {"model": f"{family}/c", "parameters": {"weight": rules}},
        ],
    }


def stack(family: str) -> dict:
    """A document that stacks layers of two models."""
    pieces = (("a", [0, 3]), ("b", [1, 4]))
    sources = [[{"model": f"{family}/{m}", "layer_range": layers}] for m, layers in pieces]
    return {
        "name": "out",
        "merge_method": "passthrough",
        "slices": [{"sources": s} for s in sources],
    }


def as_mergekit_writes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return Mixtral's experts as mergekit saves them: all of a layer in one tensor."""
    made: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[str, list[torch.Tensor]]] = {}
    pattern = re.compile(r"(.*)\.block_sparse_moe\.experts\.\d+\.(w\d)\.weight")
    for name in sorted(tensors):
        if match := pattern.fullmatch(name):
            experts.setdefault(match[1], {}).setdefault(match[2], []).append(tensors[name])
        else:
            made[name.replace("block_sparse_moe.gate", "mlp.gate")] = tensors[name]
    for layer, found in experts.items():
        w1, w2, w3 = (torch.stack(found[w]) for w in ("w1", "w2", "w3"))
        made[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat([w1, w3], dim=1)
        made[f"{layer}.mlp.experts.down_proj"] = w2
    return made


def build(document: dict, root: Path, folder: Path) -> Path:
    """Build a document as a package that transformers loads, and return its folder."""
    text = yaml.safe_dump(place(document, root), sort_keys=False)
    with contextlib.chdir(folder):
        return merge(text).folder.absolute()


@pytest.mark.slow
class TestArchitectures:
    @pytest.mark.parametrize(
        ("family", "document"),
        [(f, blend) for f in FAMILIES if f not in (*REFUSED, "llava")]
        + [(f, stack) for f in LAYERED if f not in (*REFUSED, *UNSTACKED)],
    )
    def test_same_as_mergekit(self, family: Any, document: Any, root: Any, tmp_path: Path) -> None:
        if family == "gpt_neox":
            self.add_buffers(root / family)
        oracle, ours = both(place(document(family), root), tmp_path / "case")
        assert differing_bits(as_mergekit_writes(ours), oracle) == {}

    def test_a_model_without_its_head_s_prefix(self, root: Any, tmp_path: Path) -> None:
        """A GPT-2 as it is on the Hub lacks ``transformer.`` in front of every name."""
        for model, bare in (("b", True), ("c", False)):
            tensors = load_file(root / "gpt2" / model / "model.safetensors")
            if bare:
                tensors = {n.removeprefix("transformer."): t for n, t in tensors.items()}
            shutil.copytree(root / "gpt2" / model, tmp_path / model)
            save_file(tensors, tmp_path / model / "model.safetensors", {"format": "pt"})
        document = blend("gpt2") | {"base_model": str(root / "gpt2/a")}
        for entry, model in zip(document["models"], "bc", strict=True):
            entry["model"] = str(tmp_path / model)
        oracle, ours = both(document, tmp_path / "case")
        assert differing_bits(ours, oracle) == {}

    def test_integers_are_copied(self, root: Any, tmp_path: Path) -> None:
        self.add_buffers(root / "gpt_neox")
        document = blend("gpt_neox") | {"dtype": "float16"}
        oracle, ours = both(place(document, root), tmp_path / "case")
        name = "gpt_neox.layers.2.attention.bias"
        assert oracle[name].dtype == torch.float16
        assert torch.equal(ours[name], torch.ones(1, 1, 8, 8, dtype=torch.bool).tril())

    def add_buffers(self, folder: Path) -> None:
        """Add what older checkpoints hold and mergekit asks for."""
        for model in "abc":
            path = folder / model / "model.safetensors"
            tensors = load_file(path)
            for i in range(4):
                prefix = f"gpt_neox.layers.{i}.attention."
                tensors[prefix + "bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
                tensors[prefix + "masked_bias"] = torch.tensor(-1e4, dtype=torch.float16)
                tensors[prefix + "rotary_emb.inv_freq"] = torch.ones(4)
            save_file(tensors, path, {"format": "pt"})

    @pytest.mark.parametrize(("family", "says"), REFUSED.items())
    def test_what_mergekit_cannot_take(
        self, family: Any, says: Any, root: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(RuntimeError, match=says):
            both(place(blend(family), root), tmp_path / "case")

    @pytest.mark.parametrize("family", UNSTACKED)
    def test_what_mergekit_cannot_stack(self, family: Any, root: Any, tmp_path: Path) -> None:
        with pytest.raises(Exception, match="must be equal to the number of `layer_types`"):
            both(place(stack(family), root), tmp_path / "case")

    def test_mergekit_loses_a_language_model(self, root: Any, tmp_path: Path) -> None:
        """It names the tensors anew, and takes those that it does not find for optional."""
        oracle, ours = both(place(blend("llava"), root), tmp_path / "case")
        lost = {name for name in ours if f"model.{name}" not in oracle}
        assert lost and all(name.startswith("language_model.") for name in lost)
        same = {f"model.{name}": tensor for name, tensor in ours.items() if name not in lost}
        assert differing_bits(same, oracle) == {}


@pytest.mark.slow
class TestLoading:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_merged(self, family: Any, root: Any, tmp_path: Path) -> None:
        model, info = load_family(family, build(blend(family), root, tmp_path))
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        base = load_family(family, root / family / "a")[0].state_dict()
        changed = [name for name, t in model.state_dict().items() if not torch.equal(t, base[name])]
        assert len(changed) > 0.8 * len(base)

    @pytest.mark.parametrize("family", LAYERED)
    def test_stacked(self, family: Any, root: Any, tmp_path: Path) -> None:
        model, info = load_family(family, build(stack(family), root, tmp_path))
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        sources = {m: load_family(family, root / family / m)[0].state_dict() for m in "ab"}
        found = model.state_dict()
        for name, tensor in found.items():
            if is_head(name) and model.config.tie_word_embeddings:
                continue
            origin, there = self.origin(name)
            assert torch.equal(tensor, sources[origin][there]), name
        assert max(layer_of(n)[1] for n in found if layer_of(n)) == 5
        tokens = torch.arange(8)[None]
        assert model(input_ids=tokens).logits.isfinite().all()

    def origin(self, name: str) -> tuple[str, str]:
        if layer := layer_of(name):
            stack, number = layer
            rest = name.removeprefix(f"{stack}{number}.")
            return ("a", name) if number < 3 else ("b", f"{stack}{number - 2}.{rest}")
        return ("a" if is_before(name) else "b"), name

    @pytest.mark.parametrize("family", ["llava", "gemma3vl"])
    def test_modules(self, family: Any, root: Any, tmp_path: Path) -> None:
        models = [{"model": f"{family}/{m}", "parameters": {"weight": 1}} for m in "ab"]
        document = stack(family) | {
            "merge_method": "linear",
            "parameters": {"weight": 1},
            "modules": {
                "text_decoder": {"slices": stack(family)["slices"]},
                "vision_tower": {"models": models},
                "multi_modal_projector": {"models": models[:1]},
            },
        }
        del document["slices"]
        folder = build(document, root, tmp_path)
        config = json.loads((folder / "config.json").read_text())
        assert config["text_config"]["num_hidden_layers"] == 6
        assert config["vision_config"]["num_hidden_layers"] == 3
        _, info = load_family(family, folder)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    def test_encoder_and_decoder(self, root: Any, tmp_path: Path) -> None:
        sources = (
            [{"model": "t5/a", "layer_range": [0, 2]}],
            [{"model": "t5/b", "layer_range": [1, 3]}],
        )
        whole = {"models": [{"model": "t5/a"}]}
        document = {
            "name": "out",
            "merge_method": "passthrough",
            "modules": {
                "decoder": {"slices": [{"sources": s} for s in sources]},
                "encoder": whole,
                "shared": whole,
            },
        }
        model, info = load_family("t5", build(document, root, tmp_path))
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert (model.config.num_layers, model.config.num_decoder_layers) == (4, 4)


class TestNamesAlone:
    """What names alone tell is what mergekit's tables of architectures say."""

    def architectures() -> list[Any]:
        from mergekit.architecture.json_definitions import JSON_ARCHITECTURES

        # mixformer counts embedding and head as layers; whisper's prefix lacks a dot
        skipped = ("mixformer-sequential", "whisper")
        return [a for a in JSON_ARCHITECTURES if a.expected_model_type not in skipped]

    @pytest.mark.parametrize(
        "architecture",
        architectures(),
        ids=lambda a: f"{a.architectures[0]}-{a.expected_model_type}",
    )
    def test_modules_and_layers(self, architecture: Any) -> None:
        wanted: dict[str, tuple[str, bool | int]] = {}
        for key, module in architecture.modules.items():
            known, prefix = module.architecture.definition, module.weight_prefix or ""
            for weights, before in ((known.pre_weights, True), (known.post_weights, False)):
                wanted |= {prefix + w.name: (key, before) for w in weights}
            for weight in known.layer_templates.weights:
                for i in range(3) if "layer_index" in weight.name else ():
                    name = weight.name.replace("${layer_index}", str(i))
                    wanted[prefix + name] = (key, i)
        owner = assign(wanted, [key for key, _ in wanted.values()])
        assert owner == {name: key for name, (key, _) in wanted.items()}
        for name, (key, where) in wanted.items():
            if type(where) is int:
                assert layer_of(name)[1] == where, name
            elif key != "multi_modal_projector":
                assert is_before(name) == where, name
