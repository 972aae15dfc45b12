"""Text models into the decoders of models that see, and these decoders as text models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from helpers.built_model import Built, merge
from helpers.engine_cases import SMALL, tuned
from helpers.tiny_tokenizers import tokenized
from helpers.vision_models import FAMILIES, Family, load, told
from shardmerge.base.errors import UserError
from shardmerge.compose.architecture.text_part import text_config, text_part
from shardmerge.plan.decide import load_plan
from shardmerge.recipe.settings import load_settings

QUICK = ("llava", "mllama")
ALL = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name)
    for name in FAMILIES
]
#: Models that say nothing without a picture.
BLIND = ("idefics",)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder of a family's models: ``vlm``, ``base`` and ``tuned``."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            FAMILIES[name].save(made[name] / "vlm", 0)
            FAMILIES[name].save_text(made[name] / "base", 1)
            FAMILIES[name].save_text(made[name] / "tuned", 2)
        return made[name]

    return of


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def built(folder: Path, *recipe: dict[str, Any], **config: Any) -> Built:
    """Merge models of a folder."""
    sources = {path.name: str(path) for path in sorted(folder.iterdir())}
    text = "\n---\n".join(json.dumps(document) for document in recipe)
    with tuned(**SMALL):
        return merge(text, sources=sources, **config)


def weighed(method: str = "linear", **weights: float) -> dict[str, Any]:
    rows = [{"model": name, "parameters": {"weight": w}} for name, w in weights.items()]
    return {"merge_method": method, "models": rows, "dtype": "float32"}


TASK_VECTOR = weighed(vlm=1, tuned=0.5, base=-0.5) | {"parameters": {"normalize": False}}
TEXT_ALONE = {
    "merge_method": "passthrough",
    "modules": {"text_decoder": {"models": [{"model": "vlm"}]}},
    "other_modules": "drop",
    "dtype": "float32",
}


def by_hand(family: Family, folder: Path) -> torch.nn.Module:
    """Return the model that sees with half of a task vector in its decoder."""
    whole = load(folder / "vlm", family.whole[0])
    base, tuned_ = (load(folder / name, family.text[0]).state_dict() for name in ("base", "tuned"))
    tensors, seen = whole.state_dict(), set()
    with torch.no_grad():
        for name in base:
            if base[name].data_ptr() in seen:
                continue  # the output embedding of a tied model
            seen.add(base[name].data_ptr())
            there = tensors[family.named(name)]
            there[: len(base[name])] += 0.5 * (tuned_[name] - base[name])
    return whole


class TestIntoVision:
    @pytest.mark.parametrize("name", ALL)
    def test_a_task_vector_of_text_models_is_added_to_the_decoder(
        self, name: str, models: Any
    ) -> None:
        family, folder = FAMILIES[name], models(name)
        out = load(built(folder, TASK_VECTOR).folder, family.whole[0])
        wanted = by_hand(family, folder)
        for tensor, value in out.state_dict().items():
            assert torch.allclose(value, wanted.state_dict()[tensor], atol=1e-6), tensor
        if name not in BLIND:
            assert torch.allclose(told(out), told(wanted), atol=1e-5)
            assert not torch.allclose(told(out), told(load(folder / "vlm", family.whole[0])))


class TestTextAlone:
    @pytest.mark.parametrize("name", ALL)
    def test_it_says_what_the_whole_says_of_text(self, name: str, models: Any) -> None:
        family, folder = FAMILIES[name], models(name)
        out = built(folder, TEXT_ALONE).folder
        config = json.loads((out / "config.json").read_text())
        assert config["architectures"] == [family.text[0]]
        model, whole = load(out, family.text[0]), load(folder / "vlm", family.whole[0])
        for tensor, value in model.state_dict().items():
            own = whole.state_dict()[family.named(tensor)]
            assert torch.equal(value, own[: len(value)]), tensor
        if name not in BLIND:
            assert torch.allclose(told(model), told(whole), atol=1e-5)


FAST = "llava"


def two_documents(second: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the text decoder alone as document ``text``, and one that reads it."""
    return [TEXT_ALONE | {"name": "text"}, second | {"name": "out"}]


def findings(folder: Path, *recipe: dict[str, Any]) -> list[str]:
    """Return what recipe checks say of what is merged of texts and pictures."""
    sources = {path.name: str(path) for path in sorted(folder.iterdir())}
    Path("recipe.yaml").write_text("\n---\n".join(json.dumps(one) for one in recipe))
    settings = load_settings({"recipes": ["recipe.yaml"], "sources": sources})
    plan = load_plan(settings, say=lambda line: None)
    return [said for said in plan.warnings if "text-into-vision" in said]


class TestRecipes:
    def test_an_obvious_task_vector_over_the_model_that_sees(self, models: Any) -> None:
        family, folder = FAMILIES[FAST], models(FAST)
        recipe = weighed("task_arithmetic", tuned=0.25) | {"base_model": "vlm"}
        out = load(built(folder, recipe).folder, family.whole[0]).state_dict()
        whole = load(folder / "vlm", family.whole[0]).state_dict()
        text = load(folder / "tuned", family.text[0]).state_dict()
        known = {family.named(name): value for name, value in text.items()}
        for name, value in whole.items():
            wanted = value + 0.25 * (known[name] - value) if name in known else value
            assert torch.allclose(out[name], wanted, atol=1e-6), name

    def test_a_text_base_makes_a_text_model(self, models: Any) -> None:
        family, folder = FAMILIES[FAST], models(FAST)
        recipe = weighed("task_arithmetic", vlm=0.5) | {"base_model": "base"}
        out = load(built(folder, recipe).folder, family.text[0]).state_dict()
        whole = load(folder / "vlm", family.whole[0]).state_dict()
        for name, value in load(folder / "base", family.text[0]).state_dict().items():
            wanted = (value + whole[family.named(name)]) / 2
            assert torch.allclose(out[name], wanted, atol=1e-6), name
        assert "a text model as 'base' is" in findings(folder, recipe)[0]

    @pytest.mark.parametrize("method", ["ties", "slerp", "nuslerp"])
    def test_other_methods_leave_the_other_parts_as_they_are(
        self, method: str, models: Any
    ) -> None:
        family, folder = FAMILIES[FAST], models(FAST)
        values = {"t": 0.5} if method == "slerp" else {"weight": 0.5, "density": 0.5}
        others = {"slerp": ["tuned"], "nuslerp": ["tuned", "vlm"]}.get(method, ["tuned", "base"])
        recipe = {
            "merge_method": method,
            "models": [{"model": name} for name in others],
            "parameters": values,
            "dtype": "float32",
        } | ({} if method == "nuslerp" else {"base_model": "vlm"})
        if method == "nuslerp":
            recipe["models"].reverse()
        out = load(built(folder, recipe).folder, family.whole[0]).state_dict()
        for name, value in load(folder / "vlm", family.whole[0]).state_dict().items():
            same = torch.equal(out[name], value)
            assert same == ("vision" in name or "projector" in name), name

    @pytest.mark.parametrize("numerics", ["mergekit-0.1.5"])
    def test_in_the_numerics_of_mergekit(self, numerics: str, models: Any) -> None:
        family, folder = FAMILIES[FAST], models(FAST)
        out = load(built(folder, TASK_VECTOR, numerics=numerics).folder, family.whole[0])
        wanted = by_hand(family, folder).state_dict()
        assert all(torch.allclose(v, wanted[n], atol=1e-6) for n, v in out.state_dict().items())

    def test_modules_name_the_decoder_and_the_others_are_kept(self, models: Any) -> None:
        family, folder = FAMILIES[FAST], models(FAST)
        rows = TASK_VECTOR["models"]
        recipe = {
            "merge_method": "linear",
            "modules": {"text_decoder": {"models": rows}},
            "parameters": {"normalize": False},
            "other_modules": "keep",
            "dtype": "float32",
        }
        out = load(built(folder, recipe).folder, family.whole[0]).state_dict()
        wanted = by_hand(family, folder).state_dict()
        assert all(torch.allclose(out[name], value, atol=1e-6) for name, value in wanted.items())

    def test_an_output_embedding_of_the_text_models_unties_the_whole(self, tmp_path: Path) -> None:
        family = FAMILIES[FAST]
        tied = family.values | {"tie_word_embeddings": True}
        tied["text_config"] = tied["text_config"] | {"tie_word_embeddings": True}
        replace(family, values=tied).save(tmp_path / "models/vlm", 0)
        for seed, name in enumerate(("base", "tuned")):
            family.save_text(tmp_path / "models" / name, seed + 1)
        out = built(tmp_path / "models", TASK_VECTOR).folder
        made = load(out, family.whole[0]).state_dict()
        texts = {n: tensors(tmp_path / "models" / n) for n in ("base", "tuned")}
        whole = tensors(tmp_path / "models/vlm")["language_model.model.embed_tokens.weight"]
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            wanted = whole + 0.5 * (texts["tuned"][name] - texts["base"][name])
            assert torch.allclose(made[family.named(name)], wanted, atol=1e-6), name

    def test_the_text_alone_is_read_by_another_document(self, models: Any) -> None:
        family, folder = FAMILIES[FAST], models(FAST)
        out = built(folder, *two_documents(weighed(text=0.5, tuned=0.5))).folder
        made = load(out, family.text[0]).state_dict()
        whole = load(folder / "vlm", family.whole[0]).state_dict()
        for name, value in load(folder / "tuned", family.text[0]).state_dict().items():
            wanted = (value + whole[family.named(name)]) / 2
            assert torch.allclose(made[name], wanted, atol=1e-6), name

    @pytest.mark.parametrize("name", ["llava", "mllama"])
    def test_layers_of_the_text_alone_are_counted_from_it(self, name: str, models: Any) -> None:
        family, folder = FAMILIES[name], models(name)
        picked = [{"sources": [{"model": "vlm", "layer_range": [n, n + 1]}]} for n in (1, 0, 1)]
        recipe = TEXT_ALONE | {"modules": {"text_decoder": {"slices": picked}}}
        out = built(folder, recipe).folder
        assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 3
        made = load(out, family.text[0]).state_dict()
        whole = load(folder / "vlm", family.whole[0]).state_dict()
        for new, old in enumerate((1, 0, 1)):
            key = "layers.{}.mlp.up_proj.weight"
            own = whole[family.named(f"model.{key.format(old)}")]
            assert torch.equal(made[f"model.{key.format(new)}"], own)

    def test_a_finding_says_which_part_is_merged(self, models: Any) -> None:
        (said,) = findings(models(FAST), TASK_VECTOR)
        assert "'tuned', 'base' are text models" in said
        assert "'vlm', whose other parts stay" in said
        assert not findings(models(FAST), TEXT_ALONE)


class TestSideFiles:
    def test_nothing_for_pictures_comes_along_with_the_text(
        self, models: Any, tmp_path: Path
    ) -> None:
        shutil.copytree(models(FAST), tmp_path / "models")
        for name in ("preprocessor_config.json", "processor_config.json", "vocab.json"):
            (tmp_path / "models/vlm" / name).write_text("{}")
        assert set(built(tmp_path / "models", TEXT_ALONE).build.files) == {
            "config.json",
            "generation_config.json",
            "vocab.json",
        }
        assert "processor_config.json" in built(tmp_path / "models", TASK_VECTOR).build.files


class TestRefusals:
    def test_a_decoder_of_another_size_is_told_side_by_side(
        self, models: Any, tmp_path: Path
    ) -> None:
        shutil.copytree(models(FAST), tmp_path / "models")
        shutil.rmtree(tmp_path / "models/tuned")
        FAMILIES[FAST].save_text(
            tmp_path / "models/tuned", 5, num_hidden_layers=3, num_attention_heads=2
        )
        with pytest.raises(UserError, match="not like the text decoder of 'vlm'") as error:
            built(tmp_path / "models", TASK_VECTOR)
        assert "'vlm' has 2 layers, 4 heads" in error.value.hint
        assert "'tuned' has 3 layers, 2 heads" in error.value.hint

    def test_a_vision_tower_alone_is_no_text_model(self, tmp_path: Path) -> None:
        shape = (2, 2)
        tower = {f"vision_model.layers.{i}.fc.weight": torch.ones(shape) for i in range(2)}
        text = {f"text_model.layers.{i}.fc.weight": torch.ones(shape) for i in range(2)}
        for name, found in (("a", tower | text), ("b", tower)):
            (tmp_path / "models" / name).mkdir(parents=True)
            save_file(found, tmp_path / "models" / name / "model.safetensors")
            (tmp_path / "models" / name / "config.json").write_text('{"model_type": "clip"}')
        with pytest.raises(UserError, match=r"text_model.* is in 'a' but not in 'b'"):
            built(tmp_path / "models", weighed(a=1, b=1))

    def test_another_number_of_tokens_is_told_with_a_way_out(
        self, models: Any, tmp_path: Path
    ) -> None:
        shutil.copytree(models(FAST), tmp_path / "models")
        for name in ("tuned", "base"):
            shutil.rmtree(tmp_path / "models" / name)
            FAMILIES[FAST].save_text(tmp_path / "models" / name, 5, vocab_size=44)
        with pytest.raises(UserError, match=r"has shape \[48, 16\] in 'vlm' but") as error:
            built(tmp_path / "models", TASK_VECTOR)
        assert "tokenizer_source: base" in error.value.hint

    def test_other_parts_are_not_left_out_by_forgetting_them(self, models: Any) -> None:
        recipe = {k: v for k, v in TEXT_ALONE.items() if k != "other_modules"}
        with pytest.raises(UserError, match="`modules` leaves out") as error:
            built(models(FAST), recipe)
        assert "`other_modules: drop`" in error.value.hint

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"other_modules": "maybe"}, "must be `keep` or `drop`"),
            ({"modules": {"vision_tower": TEXT_ALONE["modules"]["text_decoder"]}}, "text decoder"),
        ],
    )
    def test_what_is_left_out_must_be_clear(
        self, change: dict[str, Any], said: str, models: Any
    ) -> None:
        with pytest.raises(UserError, match=said):
            built(models(FAST), TEXT_ALONE | change)

    def test_the_key_needs_modules(self, models: Any) -> None:
        with pytest.raises(UserError, match="`other_modules` needs `modules`"):
            built(models(FAST), TASK_VECTOR | {"other_modules": "drop"})

    def test_an_unknown_kind_of_decoder(self, models: Any, tmp_path: Path) -> None:
        shutil.copytree(models(FAST), tmp_path / "models")
        file = tmp_path / "models/vlm/config.json"
        config = json.loads(file.read_text())
        config["text_config"]["model_type"] = "of_my_own"
        file.write_text(json.dumps(config))
        with pytest.raises(UserError, match="not known which class") as error:
            built(tmp_path / "models", TEXT_ALONE)
        assert "of_my_own" in str(error.value)


class TestTokens:
    def test_rows_follow_tokens_and_a_picture_keeps_its_own(self) -> None:
        sizes = {"vlm": ("<image>", "the", "cat"), "tuned": ("cat", "dog"), "base": ("cat",)}
        folder = Path("models")
        for seed, (name, words) in enumerate(sizes.items()):
            added = {word: True for word in words if word.startswith("<")}
            plain = [word for word in words if word not in added]
            tokenized(folder / name, seed, plain, added, dtype=torch.float32, spare=seed)
        seeing(folder / "vlm")
        recipe = weighed("task_arithmetic", tuned=0.5)
        out = tensors(
            built(folder, recipe | {"base_model": "vlm", "tokenizer_source": "base"}).folder
        )
        name = "embed_tokens.weight"
        whole = tensors(folder / "vlm")[f"language_model.model.{name}"]
        text = tensors(folder / "tuned")[f"model.{name}"]
        ids = {key: vocabulary(folder / key) for key in ("vlm", "tuned")}
        made = out[f"language_model.model.{name}"]
        assert len(made) == len(whole) and "<image>" not in ids["tuned"]
        assert torch.equal(made[ids["vlm"]["<image>"]], whole[ids["vlm"]["<image>"]])
        for token in set(ids["vlm"]) & set(ids["tuned"]):
            have, other = whole[ids["vlm"][token]], text[ids["tuned"][token]]
            wanted = have + 0.5 * (other - have)
            assert torch.allclose(made[ids["vlm"][token]], wanted, atol=1e-6), token


def test_a_quantised_text_model_is_decoded_into_the_decoder() -> None:
    folder = Path("models")
    for seed, name in enumerate(("vlm", "tuned")):
        tokenized(folder / name, seed, ["cat"], dtype=torch.float32)
    seeing(folder / "vlm")
    own = tensors(folder / "tuned")
    name = "model.layers.1.mlp.up_proj.weight"
    codes, scale = own[name].to(torch.float8_e4m3fn), torch.tensor([0.5])
    save_file(own | {name: codes, f"{name}_scale": scale}, folder / "tuned/model.safetensors")
    out = tensors(built(folder, weighed(vlm=0.5, tuned=0.5)).folder)
    wanted = (tensors(folder / "vlm")[f"language_model.{name}"] + codes.float() * scale) / 2
    assert torch.allclose(out[f"language_model.{name}"], wanted, atol=1e-6)


def seeing(folder: Path) -> None:
    """Make a tiny Llama the decoder of a model that sees."""
    text = {f"language_model.{name}": tensor for name, tensor in tensors(folder).items()}
    picture = {"vision_tower.vision_model.embeddings.class_embedding": torch.ones(3)}
    picture |= {f"vision_tower.layers.{i}.fc.weight": torch.full((2, 2), i + 1.0) for i in range(3)}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file({**text, **picture}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": config}))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = (load_file(path) for path in sorted(folder.glob("*.safetensors")))
    return {name: tensor for one in found for name, tensor in one.items()}


def vocabulary(folder: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


class TestConfigurations:
    def test_keys_of_older_files_that_have_no_sections(self) -> None:
        values = {
            "model_type": "qwen2_vl",
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "vision_start_token_id": 1,
            "image_token_id": 2,
            "bos_token_id": 3,
            "vision_config": {"depth": 32},
            "quantization_config": {"quant_method": "fp8"},
        }
        made = text_config(values, tied=False)
        defaults = {"num_key_value_heads": 8, "rms_norm_eps": 1e-05, "vocab_size": 152064}
        assert made.items() >= defaults.items()
        wanted = {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 3584,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "bos_token_id": 3,
            "tie_word_embeddings": False,
        }
        assert made.items() >= wanted.items()
        assert not {"vision_start_token_id", "image_token_id", "vision_config"} & set(made)
        assert "quantization_config" not in made

    def test_a_section_without_its_type_is_of_the_default_one(self) -> None:
        config = {"model_type": "llava", "text_config": {"hidden_size": 4}, "eos_token_id": 7}
        made = text_config(config, tied=True)
        assert made["architectures"] == ["LlamaForCausalLM"]
        assert made["eos_token_id"] == 7 and made["tie_word_embeddings"] is True

    def test_layers_for_pictures_are_not_counted(self) -> None:
        section = {"num_hidden_layers": 40, "cross_attention_layers": [3, 8], "rope_theta": 1.0}
        made = text_config({"model_type": "mllama", "text_config": section}, tied=False)
        assert made["num_hidden_layers"] == 38 and made["rope_theta"] == 1.0
        assert "cross_attention_layers" not in made

    def test_a_whole_that_says_nothing_of_its_text(self) -> None:
        assert text_config({"model_type": "smolvlm", "vision_config": {}}, tied=False) is None

    def test_layers_for_multi_token_prediction_are_part_of_the_text(self) -> None:
        names = [f"model.language_model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
        names += ["mtp.layers.0.mlp.up_proj.weight", "mtp.norm.weight"]
        names += ["model.visual.blocks.0.mlp.up_proj.weight"]
        part = text_part(names, {"model_type": "qwen3_5"})
        assert set(part.own.values()) == set(names[:-1])
        assert {"mtp.layers.0.mlp.up_proj.weight", "mtp.norm.weight"} <= set(part.own)

    @pytest.mark.parametrize(
        "section",
        [
            {"model_type": ["llama"]},
            {"cross_attention_layers": [[1], None, "x"], "num_hidden_layers": "2"},
            {"rope_scaling": {"type": "mrope", "factor": [1, {}]}, "rope_parameters": [1]},
        ],
    )
    def test_strange_values_of_a_stranger(self, section: dict[str, Any]) -> None:
        config = {"model_type": "mllama", "text_config": section, "architectures": 3}
        assert text_config(config, tied=False)["model_type"] == "llama"
        names = [f"language_model.model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
        names += ["vision_model.layers.0.fc1.weight"]
        assert text_part(names, config).layers
