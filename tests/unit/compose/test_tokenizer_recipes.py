"""What recipes say of tokenizers and chat templates: read, planned, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from helpers.hub_cases import environment
from helpers.loopback_hub import LoopbackHub
from helpers.planned import locked
from helpers.tiny_tokenizers import tokenized
from shardmerge.algebra import expression as ex
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.numerics import FLOAT32, Numerics
from shardmerge.compose.composer import Composer
from shardmerge.compose.tokenizer_files import config_values, generation_source, tokenizer_files
from shardmerge.engine import build_shard
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import load_spec
from shardmerge.recipe.chat import CHAT_TEMPLATES, most_common, named_template, own_template
from shardmerge.recipe.recipe import load_recipe, parse_recipe
from shardmerge.recipe.references import Reference
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.lock import Lock
from shardmerge.sources.sources import Sources, lock_path

SPECIAL = {"<s>": True, "</s>": True}
HEAD = "merge_method: linear\nmodels: [{model: o/a, parameters: {weight: 1}}]\n"


def parse(text: str) -> Any:
    return parse_recipe(HEAD + text, "r.yaml").stages["r"]


class TestReading:
    @pytest.mark.parametrize("source", ["union", "base"])
    def test_source(self, source: str) -> None:
        settings = parse(f"tokenizer_source: {source}").tokenizer
        assert (settings.source, settings.model, settings.rules) == (source, None, ())

    def test_a_model_is_a_source_of_the_recipe(self) -> None:
        stage = parse("tokenizer_source: o/t@main")
        assert stage.tokenizer.model == Reference("o/t", "main")
        assert Reference("o/t", "main") in stage.references
        block = parse("tokenizer: {source: {model: {path: o/t, revision: main}}}")
        assert block.tokenizer.model == Reference("o/t", "main")

    def test_block(self) -> None:
        text = """
tokenizer:
  pad_to_multiple_of: 8
  tokens:
    <a>: {source: o/a, force: true}
    <b>: {source: {kind: zero}}
    <c>: {source: {kind: model_token, model: o/a, token: x}}
    <d>: {source: {kind: model_token, model: o/a, token_id: 3}}
    <e>:
"""
        settings = parse(text).tokenizer
        assert (settings.source, settings.pad_to_multiple_of) == ("union", 8)
        found = [(r.token, r.kind, r.other, r.force) for r in settings.rules]
        assert found == [
            ("<a>", "model", None, True),
            ("<b>", "zero", None, False),
            ("<c>", "token", "x", False),
            ("<d>", "token", 3, False),
            ("<e>", None, None, False),
        ]
        assert settings.rules[0].where == "r.yaml:7"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("tokenizer_source: base\ntokenizer: {source: base}", "not both"),
            ("tokenizer_source: 3", "must be `union`, `base` or a model"),
            ("tokenizer: {sources: base}", "unknown key 'sources'"),
            ("tokenizer: {pad_to_multiple_of: 0}", "a whole number from 1 to"),
            ("tokenizer: {tokens: [a]}", "must map tokens"),
            ("tokenizer: {tokens: {a: {forced: true}}}", "unknown key 'forced'"),
            ("tokenizer: {tokens: {a: {force: 1}}}", "must be true or false"),
            ("tokenizer: {tokens: {a: {source: {kind: none}}}}", "must be `zero` or `model_token`"),
            ("tokenizer: {tokens: {a: {source: {kind: model_token, model: o/a}}}}", "either"),
            (
                "tokenizer: {tokens: {a: {source: {kind: model_token, model: o/a, token_id: -1}}}}",
                "0 or above",
            ),
            ("chat_template: chatmll", "neither a known name nor a Jinja template"),
        ],
    )
    def test_mistakes(self, text: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            parse(text)
        assert caught.value.where.startswith("r.yaml:")

    def test_chat_template(self) -> None:
        assert parse("chat_template: auto").chat_template == "auto"
        literal = "{% for m in messages %}{{ m.content }}{% endfor %}"
        assert parse(f"chat_template: '{literal}'").chat_template == literal


class TestChatTemplates:
    TALK = (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "Bye"},
    )

    def render(self, template: Any, turns: Any, prompt: Any = True) -> Any:
        texts, _ = render_jinja_template(
            conversations=[list(turns)],
            chat_template=template,
            add_generation_prompt=prompt,
            bos_token="<s>",
            eos_token="</s>",
        )
        return texts[0]

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            (
                "chatml",
                "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                "<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
                "<|im_start|>assistant\n",
            ),
            (
                "llama3",
                "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            ("mistral", "<s> [INST] Be kind.\n\nHi [/INST] Yo</s> [INST] Bye [/INST]"),
            (
                "exaone",
                "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Yo[|endofturn|]\n"
                "[|user|]Bye\n[|assistant|]",
            ),
            (
                "alpaca",
                "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nYo\n\n### Instruction:\nBye\n\n"
                "### Response:\n",
            ),
        ],
    )
    def test_by_name(self, name: str, expected: str) -> None:
        assert self.render(named_template(name), self.TALK) == expected

    @pytest.mark.parametrize("name", ["chatml", "mistral"])
    def test_as_mergekit_renders(self, name: str) -> None:
        from importlib.resources import files

        from mergekit._data import chat_templates

        theirs = files(chat_templates).joinpath(f"{name}.jinja").read_text()
        for turns in (self.TALK, self.TALK[1:], self.TALK[1:3]):
            for prompt in (False, True):
                ours = self.render(named_template(name), turns, prompt)
                assert ours == self.render(theirs, turns, prompt)

    def test_names(self) -> None:
        assert CHAT_TEMPLATES == ("alpaca", "chatml", "exaone", "llama3", "mistral")
        assert named_template("{{ x }}") == "{{ x }}"

    def test_of_a_model(self) -> None:
        config = {"tokenizer_config.json": json.dumps({"chat_template": " {{ a }} "})}
        assert own_template(config, "m") == "{{ a }}"
        assert own_template(config | {"chat_template.jinja": "{{ b }}\n"}, "m") == "{{ b }}"
        several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
        listed = {"tokenizer_config.json": json.dumps({"chat_template": several})}
        assert own_template(listed, "m") == "d"
        assert own_template({}, "m") is None

    def test_most_common(self) -> None:
        assert most_common(["a", "b", "b", None]) == "b"
        assert most_common(["b", "a", None, None]) == "b"
        assert most_common([None]) is None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenized(root / "a", 0, ["the", "cat"], SPECIAL, chat_template="{{ a }}", **named)
    tokenized(root / "b", 1, ["the", "dog"], SPECIAL | {"<x>": True}, **named)
    tokenized(root / "c", 2, ["the", "cat"], SPECIAL, spare=5, chat_template="{{ c }}", **named)
    tokenized(root / "d", 3, ["the", "cat"], SPECIAL, chat_template="{{ c }}", **named)
    config = load_json(root / "b/config.json")
    (root / "b/config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    (root / "b/generation_config.json").write_text('{"eos_token_id": 7}')
    shutil.copytree(root / "a", root / "bare")
    for path in (root / "bare").glob("*token*"):
        path.unlink()
    return root


def planned(
    folder: Path, models: Path, names: str, numerics: Numerics = FLOAT32, **keys: Any
) -> Composer:
    """Return the composer of a linear merge of models, locked."""
    made = {"merge_method": "linear", "dtype": "float16", "models": []} | keys
    for name in names.split():
        model = {"model": str(models / name), "parameters": {"weight": 0.5}}
        made["models"].append(model)
    return locked(folder, made, numerics)


class TestPlanning:
    def test_sizes_that_differ_are_refused(self, tmp_path: Path, models: Path) -> None:
        composer = planned(tmp_path, models, "a c")
        with pytest.raises(UserError) as caught:
            composer.outputs("r")
        for word in ("lm_head.weight", "[20, 16]", "[25, 16]", "/a'", "/c'"):
            assert word in caught.value.message
        assert "tokenizer_source: union" in caught.value.hint

    def test_same_tokens_leave_the_sum_as_it_is(self, tmp_path: Path, models: Path) -> None:
        composer = planned(tmp_path, models, "a d", tokenizer_source="union")
        for output in composer.outputs("r"):
            assert all(isinstance(leaf, ex.Source) for _, leaf in output.expression.terms)
        assert tokenizer_files(composer, "r").made == ()
        assert config_values(composer, "r") == {}

    def test_spare_rows_are_left_out(self, tmp_path: Path, models: Path) -> None:
        composer = planned(tmp_path, models, "a c", tokenizer_source="base")
        outputs = {t.name: t for t in composer.outputs("r")}
        terms = outputs["lm_head.weight"].expression.terms
        assert [type(leaf) for _, leaf in terms] == [ex.Source, ex.Rows]
        assert terms[1][1].table == "0+20"

    def test_a_models_own_spare_rows(self, tmp_path: Path, models: Path) -> None:
        composer = planned(tmp_path, models, "c a", tokenizer_source="base")
        assert composer.outputs("r")[0].shape == (20, 16)
        assert config_values(composer, "r") == {"vocab_size": 20}

    def test_union(self, tmp_path: Path, models: Path) -> None:
        composer = planned(tmp_path, models, "a b", tokenizer_source="union")
        files = tokenizer_files(composer, "r")
        assert files.made == ("tokenizer.json", "tokenizer_config.json")
        assert not set(files.made) & set(files.copied)
        assert files.description["source"] == str(models / "a")
        ids = composer.tokenizers.of(Reference("r")).ids
        assert config_values(composer, "r") == {"vocab_size": len(ids)}

    def test_another_models_tokens(self, tmp_path: Path, models: Path) -> None:
        composer = planned(tmp_path, models, "a b", tokenizer_source=str(models / "b"))
        assert config_values(composer, "r") == {"vocab_size": 21, "eos_token_id": 7}
        assert generation_source(composer, "r") == str(models / "b")
        files = tokenizer_files(composer, "r")
        assert files.made == () and files.copied["tokenizer.json"][0] == str(models / "b")

    def test_models_without_tokenizers(self, tmp_path: Path, models: Path) -> None:
        shutil.copytree(models / "bare", tmp_path / "bare", dirs_exist_ok=True)
        shutil.copytree(models / "bare", tmp_path / "bare2", dirs_exist_ok=True)
        composer = planned(tmp_path, tmp_path, "bare bare2", tokenizer_source="base")
        assert composer.outputs("r")[0].shape == (20, 16)
        padded = planned(tmp_path, tmp_path, "bare bare2", tokenizer={"pad_to_multiple_of": 8})
        with pytest.raises(UserError, match="none of the models has a tokenizer"):
            padded.outputs("r")

    def test_a_model_without_one_has_the_bases(self, tmp_path: Path, models: Path) -> None:
        composer = planned(tmp_path, models, "a bare", tokenizer_source="union")
        output = composer.outputs("r")[0]
        assert all(isinstance(leaf, ex.Source) for _, leaf in output.expression.terms)
        lacking = planned(tmp_path, models, "bare a", tokenizer_source="union")
        with pytest.raises(UserError, match="bare' has no tokenizer, so that its embeddings"):
            lacking.outputs("r")

    @pytest.mark.parametrize(
        ("rule", "match"),
        [
            ({"source": "o/z"}, "is not one of the models that are merged"),
            ({"source": "A"}, "has no embedding of the token '<x>'"),
            ({"source": {"kind": "model_token", "model": "A", "token": "thee"}}, "'thee'"),
            ({"source": {"kind": "model_token", "model": "A", "token_id": 20}}, "of id 20"),
            ({}, "its rule names no source"),
        ],
    )
    def test_rules_that_cannot_be_kept(
        self, tmp_path: Path, models: Path, rule: dict[str, Any], match: str
    ) -> None:
        text = json.dumps(rule).replace('"A"', json.dumps(str(models / "a")))
        block = {"tokens": {"<x>": json.loads(text)}}
        composer = planned(tmp_path, models, "a b", tokenizer=block)
        with pytest.raises(UserError, match=match) as caught:
            composer.outputs("r")
        assert "r.yaml:" in caught.value.where

    def test_chat_templates(self, tmp_path: Path, models: Path) -> None:
        composer = planned(tmp_path, models, "a c d", chat_template="auto", tokenizer_source="base")
        files = tokenizer_files(composer, "r")
        assert files.description["template"] == "{{ c }}"
        assert files.made == ("tokenizer_config.json", "chat_template.jinja")
        assert files.copied["tokenizer.json"][0] == str(models / "a")
        composer = planned(tmp_path, models, "a d", chat_template="chatml")
        assert "im_start" in tokenizer_files(composer, "r").description["template"]
        composer = planned(tmp_path, models, "bare a", chat_template="chatml")
        with pytest.raises(UserError, match="no tokenizer to put a chat template into"):
            tokenizer_files(composer, "r")

    def test_a_sentencepiece_tokenizer_takes_no_new_tokens(
        self, tmp_path: Path, models: Path
    ) -> None:
        folder = shutil.copytree(models / "bare", tmp_path / "s")
        (folder / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01x")
        block = {"source": "base", "tokens": {"<n>": {"source": {"kind": "zero"}}}}
        composer = planned(tmp_path, tmp_path, "s", tokenizer=block)
        with pytest.raises(UserError, match=r"has no tokenizer\.json"):
            tokenizer_files(composer, "r")


class TestBiases:
    """Numbers of tokens, such as the bias of BERT's last layer, follow the tokens as rows do."""

    def test_by_token(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        names = ("cls.predictions.bias", "cls.predictions.decoder.bias")
        ids, given = {}, {}
        for seed, (name, words) in enumerate({"a": ["the", "cat"], "b": ["the", "dog"]}.items()):
            folder = tokenized(Path(name), seed, words, SPECIAL)
            ids[name] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
            tensors = load_file(folder / "model.safetensors")
            given[name] = torch.randn(len(ids[name])).half()
            tensors |= {bias: given[name].clone() for bias in names}
            save_file(tensors, folder / "model.safetensors")
        models = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
        recipe = {"merge_method": "linear", "dtype": "float16", "tokenizer_source": "union"}
        Path("r.yaml").write_text(json.dumps(recipe | {"base_model": "a", "models": models}))
        plan = load_plan(load_settings({"recipes": ["r.yaml"]}), say=lambda line: None)
        (job,) = plan.builds["r"].shards
        spec = load_spec(job.digest)
        inputs = dict(zip(spec.required_files(), map(Path, job.sources), strict=True))
        build_shard(spec, inputs, Path("out.safetensors"))
        found = load_file("out.safetensors")
        lock = Lock.from_json(load_json(lock_path("r.yaml")), "lock")
        union = Composer(load_recipe("r.yaml"), lock, FLOAT32).tokenizers.of(Reference("r")).ids
        assert len(union) > len(ids["a"])
        for name in names:
            assert found[name].shape == (len(union),)
            for token, number in union.items():
                own = [given[m][ids[m][token]].float() for m in "ab" if token in ids[m]]
                assert found[name][number] == (sum(own) / len(own)).half(), token


class TestHub:
    def test_vocabularies_are_locked_and_need_no_network_then(
        self, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = tmp_path / "hub"
        for name in "ab":
            shutil.copytree(models / name, root / "o" / name)
        path = tmp_path / "r.yaml"
        text = "merge_method: linear\ntokenizer_source: union\nchat_template: auto\nmodels:\n"
        inputs = "".join(f"- {{model: o/{n}, parameters: {{weight: 1}}}}\n" for n in "ab")
        path.write_text(text + inputs)
        recipe = load_recipe(path)
        sources = Sources({}, tmp_path / "models", tmp_path / "cache")
        with LoopbackHub(root) as server:
            for key, value in environment(server, tmp_path / "home").items():
                monkeypatch.setenv(key, value)
            lock = sources.lock(recipe, write=True, renew=False, say=lambda line: None)
            asked = len(server.requests(""))
            assert sources.lock(recipe, write=False, renew=False, say=print) == lock
            assert len(server.requests("")) == asked
        assert lock.sources["o/a"].chat_template == "{{ a }}"
        assert "dog" in lock.sources["o/b"].vocabulary.ids
        made = Composer(recipe, lock, FLOAT32).tokenizers.of(Reference("r"))
        assert made.size == 23 and made.added["<x>"] == "o/b"

    def test_what_a_lock_lacks_is_added_to_it(self, tmp_path: Path, models: Path) -> None:
        plain = planned(tmp_path, models, "a d")
        assert plain.lock.sources[str(models / "a")].vocabulary is None
        recipe = load_recipe(tmp_path / "r.yaml")
        more = planned(tmp_path, models, "a d", tokenizer_source="base")
        assert more.lock.sources[str(models / "a")].vocabulary
        text = lock_path(recipe.path).read_text()
        assert text.count('"vocabulary":') == 2 and len(json.loads(text)["vocabularies"]) == 1
