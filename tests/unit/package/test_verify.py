"""verify_model and the loading of models: what is whole passes, whatever is not is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.built_model import SOURCES, Built, build_model, merge, verify
from helpers.models import LLAMA, llama_shapes, random_tensors, save_model
from helpers.tiny_tokenizers import save_tokenizer
from shardmerge.base.errors import UserError
from shardmerge.check.load import load_model, load_tokenizer
from shardmerge.check.running import PROMPT
from shardmerge.package.index import index_text, make_index

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
INDEX = "model.safetensors.index.json"


_SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24}
_HEADS = {"num_attention_heads": 2}
_BART = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 40}
_VISION = _SMALL | _HEADS | {"image_size": 8, "patch_size": 4}
_MODERN = {"vocab_size": 40, "pad_token_id": 0}
#: Class, its config's class and sizes, and whether it generates text.
ENCODERS = {
    "BertModel": ("BertConfig", _SMALL | _HEADS | {"vocab_size": 40}, False),
    "BertForMaskedLM": ("BertConfig", _SMALL | _HEADS | {"vocab_size": 40}, False),
    "ElectraForPreTraining": (
        "ElectraConfig",
        _SMALL | _HEADS | {"vocab_size": 40, "embedding_size": 8},
        False,
    ),
    "RobertaForMaskedLM": ("RobertaConfig", _SMALL | _HEADS | {"vocab_size": 40}, False),
    "DistilBertForMaskedLM": (
        "DistilBertConfig",
        {"vocab_size": 40, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
        False,
    ),
    # its tokens to begin with are beyond this vocabulary
    "ModernBertModel": ("ModernBertConfig", _SMALL | _HEADS | _MODERN, False),
    "ViTForImageClassification": ("ViTConfig", _VISION, False),
    "ViTModel": ("ViTConfig", _VISION, False),
    "CLIPModel": (
        "CLIPConfig",
        {"text_config": _SMALL | _HEADS | {"vocab_size": 40}, "vision_config": _VISION},
        False,
    ),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        _BART
        | {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
        | {"decoder_attention_heads": 2, "num_mel_bins": 4, "max_source_positions": 8}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        | {"suppress_tokens": None, "begin_suppress_tokens": None, "max_target_positions": 8},
        False,
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 2},
        True,
    ),
    "BartForConditionalGeneration": (
        "BartConfig",
        _BART
        | {"encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 32}
        | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "bos_token_id": 0}
        | {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
        | {"forced_eos_token_id": 2},
        True,
    ),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("verify"))
        yield build_model()


@pytest.fixture
def built(original: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model in a folder of its own, to be damaged."""
    shutil.copytree(Path.cwd(), tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return replace(original)


def merge_anew(built: Any, max_shard_size: Any) -> Any:
    """Return the model merged again in the same folder, in shards of another size."""
    text = Path("recipe.yaml").read_text()
    sources = {name: f"models/{name}" for name in SOURCES}
    return merge(text, sources=sources, max_shard_size=max_shard_size)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestFiles:
    def test_whole(self, built: Built) -> None:
        found = verify(built)
        assert found.passed is True
        assert found.tensors == len(llama_shapes(3))
        assert found.shards == 4
        assert found.bytes == sum(2 * torch.Size(s).numel() for s in llama_shapes(3).values())
        assert found.elements == found.bytes // 2
        assert found.not_sampled == ()

    def test_tensors_that_were_verified_by_probes_are_counted(self, built: Built) -> None:
        for number, path in enumerate(built.records("checks")):
            edit(path, verified_by_probes=number)
        assert verify(built).verified_by_probes == 0 + 1 + 2 + 3

    def test_shard_missing(self, built: Built) -> None:
        Path(built.build.shards[1].output).unlink()
        with pytest.raises(UserError, match="model-00002-of-00004"):
            verify(built)

    def test_shard_longer(self, built: Built) -> None:
        with open(built.build.shards[1].output, "ab") as file:
            file.write(b"\0")
        with pytest.raises(UserError, match="bytes, but"):
            verify(built)

    def test_shard_of_other_tensors(self, built: Built) -> None:
        shards = [Path(job.output) for job in built.build.shards]
        shutil.copy(shards[0], shards[1])
        edit(built.records()[1], size=shards[1].stat().st_size)
        with pytest.raises(UserError, match="missing"):
            verify(built)

    def test_record_of_another_plan(self, built: Built) -> None:
        edit(built.records()[2], spec="0" * 64)
        with pytest.raises(UserError, match="another plan"):
            verify(built)

    def test_record_missing(self, built: Built) -> None:
        with pytest.raises(UserError, match="no record"):
            verify(built, records=built.records()[1:])

    @pytest.mark.parametrize("name", ["model.safetensors", "x/adapter_model.safetensors"])
    def test_stray_weights(self, built: Built, name: str) -> None:
        path = built.folder / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(built.build.shards[0].output, path)
        with pytest.raises(UserError, match="not part of this model"):
            verify(built)

    def test_a_stray_index(self, built: Built) -> None:
        """A folder with one shard has none, and loaders would follow it."""
        single = merge_anew(built, "1GB")
        (single.folder / INDEX).write_text("{}")
        with pytest.raises(UserError, match=rf"{INDEX}: is not part of this model"):
            verify(single)

    def test_index_missing(self, built: Built) -> None:
        (built.folder / INDEX).unlink()
        with pytest.raises(UserError, match="is missing"):
            verify(built)

    def test_index_points_elsewhere(self, built: Built) -> None:
        index = json.loads((built.folder / INDEX).read_text())
        index["weight_map"]["lm_head.weight"] = "model-00001-of-00004.safetensors"
        (built.folder / INDEX).write_text(json.dumps(index))
        with pytest.raises(UserError, match=r"lm_head\.weight"):
            verify(built)

    def test_index_of_another_size(self, built: Built) -> None:
        edit(built.folder / INDEX, metadata={"total_size": 1})
        with pytest.raises(UserError, match="total_size 1"):
            verify(built)

    @pytest.mark.parametrize(("size", "count"), [("1GB", 1), ("6KB", 3)])
    def test_shards_of_an_earlier_plan_go(self, built: Built, size: str, count: int) -> None:
        new = merge_anew(built, size)
        assert len(new.build.shards) == count
        if count == 1:  # as it was: the workflow writes none for one shard
            (new.folder / INDEX).write_text(index_text(make_index(built.description)))
        verify(new)
        left = {p.name for p in built.results.rglob("*") if "model" in p.name}
        stems = {Path(job.output).stem for job in new.build.shards}
        assert {name.split(".")[0] for name in left if name != INDEX} == {*stems, "model"}
        assert (new.folder / INDEX).exists() == (count > 1)
        verify(new)

    def test_not_before_the_new_ones_are_right(self, built: Built) -> None:
        new = merge_anew(built, "6KB")
        edit(new.records("checks")[-1], passed=False)
        with pytest.raises(UserError, match="check that passed"):
            verify(new)
        assert all(Path(job.output).exists() for job in built.build.shards)
        assert all(path.exists() for path in built.records())  # so that one can go back

    def test_a_killed_removal_is_finished_by_the_next(
        self, built: Built, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new = merge_anew(built, "6KB")
        unlink, gone = Path.unlink, []

        def killed(path: Any, missing_ok: Any = False) -> None:
            if path.suffix == ".safetensors" or path.parent.name == "records":
                if len(gone) == 3:
                    raise KeyboardInterrupt
                gone.append(path.name)
            unlink(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                verify(new)
        assert verify(new).passed
        assert len(list(new.folder.glob("*.safetensors"))) == 3

    @pytest.mark.parametrize("change", ["bytes", "record", "link", "folder"])
    def test_what_is_not_as_we_wrote_it_stays(self, built: Built, change: str) -> None:
        old = Path(built.build.shards[1].output)
        new = merge_anew(built, "6KB")
        if change == "bytes":
            with open(old, "r+b") as file:
                file.seek(-1, 2)
                file.write(b"\x01")
        elif change == "record":
            built.records()[1].unlink()
        elif change == "link":
            (old.parent / "elsewhere").write_bytes(old.read_bytes())
            old.unlink()
            old.symlink_to("elsewhere")
        else:
            (old.parent / "x").mkdir()
            old = old.rename(old.parent / "x" / old.name)
        with pytest.raises(UserError, match="not as this workflow writes files") as caught:
            verify(new)
        assert old.exists()
        assert caught.value.hint.endswith(f"`rm {old}`")

    def test_an_index_of_ones_own_stays(self, built: Built) -> None:
        new = merge_anew(built, "1GB")
        index = make_index(built.description)
        index["weight_map"]["mine"] = "mine.safetensors"
        (new.folder / INDEX).write_text(index_text(index))
        with pytest.raises(UserError, match="not as this workflow writes files"):
            verify(new)
        assert (new.folder / INDEX).exists()

    def test_config_of_another_dtype(self, built: Built) -> None:
        edit(built.folder / "config.json", torch_dtype="bfloat16")
        with pytest.raises(UserError, match="bfloat16"):
            verify(built)

    def test_file_missing(self, built: Built) -> None:
        (built.folder / "config.json").unlink()
        with pytest.raises(UserError, match=r"config\.json: is missing"):
            verify(built)

    def test_check_missing(self, built: Built) -> None:
        with pytest.raises(UserError, match="was not checked"):
            verify(built, checks=built.records("checks")[:-1])

    def test_check_of_another_plan(self, built: Built) -> None:
        edit(built.records("checks")[0], spec="0" * 64)
        with pytest.raises(UserError, match="for another plan"):
            verify(built)

    def test_check_failed(self, built: Built) -> None:
        edit(built.records("checks")[0], passed=False)
        with pytest.raises(UserError, match="check that passed"):
            verify(built)


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return save_model(tmp_path / "m", random_tensors(llama_shapes(2), 3), files=2)

    def test_generates_in_its_own_dtype(self, folder: Path) -> None:
        found = load_model(folder, weights=True)
        assert found["architecture"] == "LlamaForCausalLM"
        assert found["loaded"] == "weights"
        assert found["loaded_dtype"] == "float16"
        assert len(found["generated"]) == 4
        assert found["finite"] is True

    def test_architecture_alone(self, folder: Path) -> None:
        found = load_model(folder, weights=False)
        shapes = llama_shapes(2).values()
        assert found["loaded"] == "architecture"
        assert found["parameters"] == sum(torch.Size(shape).numel() for shape in shapes)
        assert "generated" not in found

    @pytest.mark.parametrize("weights", [True, False])
    def test_tensor_missing(self, tmp_path: Path, weights: bool) -> None:
        tensors = random_tensors(llama_shapes(2), 3)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        folder = save_model(tmp_path / "m", tensors)
        with pytest.raises(UserError, match=r"lacks the parameter .*up_proj"):
            load_model(folder, weights=weights)

    @pytest.mark.parametrize("weights", [True, False])
    def test_shape(self, tmp_path: Path, weights: bool) -> None:
        config = LLAMA | {"num_hidden_layers": 2, "intermediate_size": 23, "dtype": "float16"}
        folder = save_model(tmp_path / "m", random_tensors(llama_shapes(2), 3), config=config)
        with pytest.raises(UserError, match=r"load it|another shape"):
            load_model(folder, weights=weights)

    def test_unused_tensors_are_told(self, tmp_path: Path) -> None:
        tensors = random_tensors(llama_shapes(2) | {"extra.weight": (2,)}, 3)
        assert load_model(save_model(tmp_path / "m", tensors), weights=True)["unused"] == [
            "extra.weight"
        ]

    def test_nonfinite(self, tmp_path: Path) -> None:
        tensors = random_tensors(llama_shapes(2), 3)
        tensors["lm_head.weight"][3] = float("nan")
        folder = save_model(tmp_path / "m", tensors)
        with pytest.raises(UserError, match="NaN values"):
            load_model(folder, weights=True)
        assert load_model(folder, weights=True, allow_nonfinite=True)["finite"] is False

    @pytest.mark.parametrize("name", sorted(ENCODERS))
    def test_the_class_that_the_config_names(self, name: str, tmp_path: Path) -> None:
        import transformers

        config, sizes, generates = ENCODERS[name]
        torch.manual_seed(0)
        getattr(transformers, name)(getattr(transformers, config)(**sizes)).save_pretrained(
            tmp_path
        )
        found = load_model(tmp_path, weights=True)
        assert found["architecture"] == name
        assert (found["generated"] is not None) == generates
        assert found.get("finite", name.startswith("Whisper"))
        assert load_model(tmp_path, weights=False)["architecture"] == name

    @pytest.mark.parametrize("name", ["ViTModel", "CLIPModel"])
    def test_what_sees_is_shown_a_picture(self, name: str, tmp_path: Path) -> None:
        import transformers

        config, sizes, _ = ENCODERS[name]
        model = getattr(transformers, name)(getattr(transformers, config)(**sizes))
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        model.save_pretrained(tmp_path)
        with pytest.raises(UserError, match="NaN values"):
            load_model(tmp_path, weights=True)

    def test_what_it_says(self, tmp_path: Path) -> None:
        tensors = random_tensors(llama_shapes(2), 3)
        tensors["lm_head.weight"].zero_()  # so that the first token is the choice
        folder = save_model(tmp_path / "m", tensors)
        assert load_model(folder, weights=True)["text"] is None
        save_letters(folder, ["\x1b[2J", *sorted(set(PROMPT))])
        found = load_model(folder, weights=True)
        assert (found["prompt"], found["generated"]) == (PROMPT, [0] * 16)
        assert found["text"] == r"\x1b[2J" * 16

    @pytest.mark.parametrize("odd", ["no letter", "room", "rows"])
    def test_a_text_that_a_model_cannot_read(self, tmp_path: Path, odd: str) -> None:
        """It is run from its first token then, as without a tokenizer."""
        room = 20 if odd == "room" else 64
        config = LLAMA | {"num_hidden_layers": 2, "max_position_embeddings": room}
        folder = save_model(tmp_path / "m", random_tensors(llama_shapes(2), 3), config=config)
        letters = ["#"] if odd == "no letter" else sorted(set(PROMPT))
        beyond = [f"<{i}>" for i in range(40)] if odd == "rows" else []
        save_letters(folder, [*beyond, *letters])
        found = load_model(folder, weights=True)
        assert (len(found["generated"]), found["text"], found["prompt"]) == (4, None, None)

    def test_what_an_encoder_and_decoder_say(self, tmp_path: Path) -> None:
        import transformers

        torch.manual_seed(0)
        config, sizes, _ = ENCODERS["T5ForConditionalGeneration"]
        made = getattr(transformers, config)(**sizes, decoder_start_token_id=0)
        transformers.T5ForConditionalGeneration(made).save_pretrained(tmp_path)
        save_letters(tmp_path, sorted(set(PROMPT)))
        found = load_model(tmp_path, weights=True)
        assert len(found["generated"]) == 16 and isinstance(found["text"], str)

    def test_code_of_its_own_is_not_run(self, folder: Path, tmp_path: Path) -> None:
        proof = tmp_path / "ran"
        (folder / "own.py").write_text(f"open({str(proof)!r}, 'w')\nclass C: pass\nclass M: pass\n")
        names = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
        edit(folder / "config.json", model_type="own", auto_map=names)
        with pytest.raises(UserError, match="never run"):
            load_model(folder, weights=True)
        assert not proof.exists()

    def test_no_tokenizer(self, folder: Path) -> None:
        assert load_tokenizer(folder) == {"tokenizer": "none"}

    def test_broken_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(UserError, match="tokenizer"):
            load_tokenizer(folder)

    def test_tokenizer(self, folder: Path) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel({"Hello": 0, "?": 1}, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        )
        assert load_tokenizer(folder) == {"tokenizer": 2}


def save_letters(folder: Path, tokens: list[str]) -> None:
    """Write a tokenizer that knows these tokens, and takes a text apart into letters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    save_tokenizer(folder, made)


class TestCommands:
    def run(self, script: Any, built: Any, *options: Any) -> Any:
        command = [sys.executable, SCRIPTS / script, "--model", built.folder]
        command += ["--build", built.build.digest, "--records", *built.records()]
        command += ["--output", "found.json", *options]
        return subprocess.run(command, capture_output=True, text=True)

    def verify(self, built: Any) -> Any:
        return self.run("verify_model.py", built, "--checks", *built.records("checks"))

    def test_verifies(self, built: Built) -> None:
        done = self.verify(built)
        assert done.returncode == 0, done.stderr
        assert json.loads(Path("found.json").read_text())["passed"] is True

    def test_loads(self, built: Built) -> None:
        done = self.run("load_model.py", built)
        assert done.returncode == 0, done.stderr
        found = json.loads(Path("found.json").read_text())
        assert found["passed"] is True
        assert len(found["generated"]) == 4
        assert "goes on" not in done.stdout  # it has no tokenizer

    @pytest.mark.slow
    def test_large_model(self, built: Any) -> None:
        assert self.run("load_model.py", built, "--limit-gb", "0").returncode == 0
        assert json.loads(Path("found.json").read_text())["loaded"] == "architecture"

    @pytest.mark.parametrize("script", ["verify", "load"])
    def test_failure_leaves_no_pass(self, built: Built, script: str) -> None:
        Path("found.json").write_text('{"passed": true}')
        Path(built.build.shards[0].output).unlink()
        done = self.verify(built) if script == "verify" else self.run("load_model.py", built)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert not Path("found.json").exists()
