"""What a GGUF file says of its model is what the model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.export.gguf_metadata import ModelFiles, check_metadata, compare_metadata

CONFIG = {
    "max_position_embeddings": 4096,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
FOUND = {
    "general.architecture": "llama",
    "llama.context_length": 4096,
    "llama.embedding_length": 8,
    "llama.attention.head_count": 2,
    "llama.block_count": 3,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": list("abcde"),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.chat_template": "{{ x }}",
}
TENSORS = {"token_embd.weight": (8, 5)}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
YARN_FOUND = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 1024,
}


def compared(config: Any = None, found: Any = None, **tensors: Any) -> Any:
    files = ModelFiles(CONFIG | (config or {}), "{{ x }}")
    merged = {k: v for k, v in (FOUND | (found or {})).items() if v is not None}
    return compare_metadata(merged, TENSORS | tensors, files)


class TestCompare:
    def test_all_is_right(self) -> None:
        seen = compared()
        assert seen.wrong == {} and seen.unknown == {}
        assert {"llama.context_length", "tokenizer.ggml.pre", "tokenizer.chat_template"} <= set(
            seen.right
        )
        check_metadata(seen, "file")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("llama.context_length", 2048),
            ("llama.rope.freq_base", 500000.0),
            ("llama.block_count", 2),
            ("llama.rope.scaling.type", "yarn"),
            ("tokenizer.ggml.pre", "default"),
            ("tokenizer.ggml.pre", None),
            ("tokenizer.ggml.model", None),
            ("tokenizer.ggml.tokens", list("abcd")),
            ("tokenizer.ggml.eos_token_id", 4),
            ("tokenizer.chat_template", None),
            ("tokenizer.chat_template", "{{ y }}"),
            ("general.architecture", None),
        ],
    )
    def test_what_differs_is_refused(self, key: str, value: Any) -> None:
        seen = compared(found={key: value})
        assert list(seen.wrong) == [key]
        with pytest.raises(UserError, match=key):
            check_metadata(seen, "file")

    @pytest.mark.parametrize("rope", ["rope_scaling", "rope_parameters"])
    def test_scaling(self, rope: str) -> None:
        assert compared({rope: YARN}, YARN_FOUND).wrong == {}
        assert set(compared({rope: YARN}).wrong) == set(YARN_FOUND)
        wrong = compared({rope: YARN}, YARN_FOUND | {"llama.rope.scaling.factor": 2.0}).wrong
        assert list(wrong) == ["llama.rope.scaling.factor"]

    def test_scaling_that_is_a_tensor(self) -> None:
        scaling = {"rope_scaling": {"rope_type": "llama3"}}
        assert list(compared(scaling).wrong) == ["rope_freqs.weight"]
        assert compared(scaling, **{"rope_freqs.weight": (4,)}).wrong == {}

    def test_scaling_that_no_rule_is_about_is_said(self) -> None:
        seen = compared({"rope_scaling": {"rope_type": "longrope"}})
        assert seen.wrong == {} and "longrope" in seen.unknown["llama.rope.scaling.type"]

    def test_tokens_are_compared_one_by_one(self) -> None:
        """A tokenizer.model that was left from another vocabulary is converted without a word."""
        for tokens, wrong in (({0: "a", 4: "e"}, False), ({1: "x"}, True), ({9: "z"}, True)):
            seen = compare_metadata(FOUND, TENSORS, ModelFiles(CONFIG, "{{ x }}", tokens))
            assert ("tokens" in seen.wrong) is wrong

    def test_layers_that_predict_may_be_counted(self) -> None:
        config = {"num_nextn_predict_layers": 1}
        assert compared(config, {"llama.block_count": 4}).wrong == {}
        assert compared({}, {"llama.block_count": 4}).wrong


class TestModelFiles:
    def test_text_of_a_model_for_images(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": 8}}')
        assert ModelFiles.of(tmp_path) == ModelFiles(
            {"text_config": {"hidden_size": 8}, "hidden_size": 8}, None
        )

    @pytest.mark.parametrize(
        "vocabulary", [{"a": 0, "b": 1, "c": 2}, [["a", 0], ["b", 0], ["c", 0]]]
    )
    def test_tokens(self, tmp_path: Path, vocabulary: Any) -> None:
        (tmp_path / "config.json").write_text("{}")
        told = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 1, "content": "b"}, 7]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(told))
        assert ModelFiles.of(tmp_path).tokens == {0: "a", 2: "c"}

    @pytest.mark.parametrize(
        ("template", "found"),
        [
            ("x", "x"),
            ([{"name": "tool_use", "template": "y"}, {"name": "default", "template": "x"}], "x"),
            ([7], None),
            (None, None),
        ],
    )
    def test_template(self, tmp_path: Path, template: Any, found: str | None) -> None:
        (tmp_path / "config.json").write_text("{}")
        told = json.dumps({"chat_template": template})
        (tmp_path / "tokenizer_config.json").write_text(told)
        assert ModelFiles.of(tmp_path).template == found
        (tmp_path / "chat_template.jinja").write_text("own")
        assert ModelFiles.of(tmp_path).template == "own"
