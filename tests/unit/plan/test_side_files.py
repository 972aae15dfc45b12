"""Files beside the weights that users of the base model need are in the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.models import LLAMA, llama_shapes, random_tensors, save_model
from helpers.planned import described
from helpers.tiny_tokenizers import WORDS, tokenized
from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.plan.decide import load_plan
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.lock import Lock
from shardmerge.sources.locking import lock_folder

#: Of the base model: what a merge keeps whoever the tokens are from.
BASES = (
    *("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "router_config.json"),
    *("query_0_WordEmbeddings/wordembedding_config.json", "0_WordEmbeddings/tokenizer.json"),
    *("sentence_bert_config.json", "sentence_xlm-roberta_config.json"),
    *("config_sentence_transformers.json", "preprocessor_config.json", "processor_config.json"),
    *("video_preprocessor_config.json", "audio_preprocessor_config.json"),
)
#: Of the tokenizer.
TOKENIZERS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "vocab.bpe", "tekken.json", "qwen.tiktoken"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/tools.jinja"),
)
#: Nothing that is taken from a model.
OTHERS = (
    *("1_Pooling/.config.json", "1_Pooling/deep/config.json", "unet/config.json", "2_Dense/x.py"),
    *("modeling_tiny.py", "README.md", "training_args.bin", "1_Pooling/README.md", "1_/a.json"),
    *("2_De nse/config.json", "-1_Pooling/config.json", "1_Pool{ing}/config.json"),
)


def put(model: str, *names: str) -> None:
    for name in names:
        path = Path(model, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"of": model, "is": name}))


def files(document: dict[str, Any] | None = None) -> dict[str, str]:
    """Return the paths of the package's files by name."""
    models = [{"model": m, "parameters": {"weight": 0.5}} for m in "ab"]
    recipe = {"name": "out", "merge_method": "linear", "models": models, "dtype": "float16"}
    Path("recipe.yaml").write_text(json.dumps(recipe | (document or {})))
    settings = load_settings({"recipes": ["recipe.yaml"]})
    (build,) = load_plan(settings, say=lambda line: None).builds.values()
    return dict(build.files)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        save_model(Path(name), random_tensors(llama_shapes(2), seed))


@pytest.mark.parametrize("name", [*BASES, *TOKENIZERS])
def test_it_comes_along(name: str) -> None:
    put("a", name)
    assert files() == {"config.json": "a/config.json", name: f"a/{name}"}


@pytest.mark.parametrize("name", OTHERS)
def test_it_stays(name: str) -> None:
    put("a", name)
    assert files() == {"config.json": "a/config.json"}


def test_all_are_the_bases() -> None:
    for model in "ab":
        put(model, *BASES, *TOKENIZERS)
    found = files({"base_model": "b"})
    assert found == {name: f"b/{name}" for name in ("config.json", *BASES, *TOKENIZERS)}


def test_those_of_a_tokenizer_come_from_where_it_is_from() -> None:
    for seed, model in enumerate("ab"):
        tokenized(Path(model), seed, WORDS)
        put(model, *BASES, "spiece.model", "tekken.json")
    found = files({"tokenizer_source": "b"})
    assert {found[name] for name in BASES} == {f"a/{name}" for name in BASES}
    for name in ("tokenizer.json", "spiece.model", "tekken.json"):
        assert found[name] == f"b/{name}"


def test_other_forms_of_a_tokenizer_go_when_its_tokens_change() -> None:
    others = {"spiece.model", "tekken.json", "qwen.tiktoken", "vocab.txt"}
    for seed, (model, words) in enumerate((("a", WORDS[:5]), ("b", WORDS[2:]))):
        tokenized(Path(model), seed, words)
        put(model, *others)
    assert others <= set(files({"tokenizer_source": "base"}))
    assert not others & set(files({"tokenizer_source": "union"}))


class TestStrangers:
    @pytest.mark.parametrize(
        "name", ["1_Pooling/config.json", "modules.json", "vocab.txt", "2_Dense/model.safetensors"]
    )
    def test_a_link_out_of_the_model_is_refused(self, name: str) -> None:
        Path("secret").write_text("{}")
        path = Path("a", name)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(Path("secret").resolve())
        with pytest.raises(UserError, match="a link out of the model's folder"):
            files()

    def test_a_folder_that_is_a_link_is_refused(self) -> None:
        put("elsewhere", "config.json")
        Path("a", "1_Pooling").symlink_to(Path("elsewhere").resolve())
        with pytest.raises(UserError, match="a link out of the model's folder"):
            files()

    @pytest.mark.parametrize(
        "name",
        ["../1_Pooling/config.json", "1_Pooling/../../x.json", "1_Pooling//config.json",
         "/1_Pooling/config.json", "1_Pooling/-config.json", "1_Pooling/a\u202e.json",
         "1_Pooling\\config.json", "1_Pooling/{x}.json", "1_Pooling/x.part"],
    )  # fmt: skip
    def test_a_lock_names_no_such_file(self, name: str) -> None:
        source = lock_folder(Path("a"), "a", Identities(Path("cache.json")))
        data = Lock({"a": source}).to_json()
        rows = data["sources"]["a"]["files"]
        rows[name] = rows["config.json"]
        with pytest.raises(UserError, match="names a file"):
            Lock.from_json(data, "lock")


def test_code_of_a_model_is_told_and_left() -> None:
    config = LLAMA | {"num_hidden_layers": 2, "auto_map": {"AutoModel": "modeling_tiny.X"}}
    save_model(Path("a"), random_tensors(llama_shapes(2), 0), config=config)
    put("a", "modeling_tiny.py")
    models = [{"model": m, "parameters": {"weight": 0.5}} for m in "ab"]
    description, warnings = described(
        {"name": "out", "merge_method": "linear", "models": models, "dtype": "float16"}
    )
    assert description["config_removed"] == ["auto_map"]
    assert "modeling_tiny.py" not in description["files"]
    assert any("[remote-code]" in line for line in warnings)
