"""Tokens of prompts: as transformers finds them, and errors of one line for broken tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.tiny_tokenizers import WORDS, bpe, save_tokenizer
from shardmerge.base.errors import UserError
from shardmerge.sources.tokenizer.prompts import prompt_tokens

_TEXTS = ("the cat", "dog<s>sat", "", " red  big")


def _tokens(folder: Path) -> dict[str, tuple[int, ...]]:
    names = [path.name for path in folder.iterdir()]
    return prompt_tokens(_TEXTS, names, lambda name: (folder / name).read_bytes(), "model 'a'")


@pytest.mark.parametrize("begin", [None, "<s>"])
def test_tokens_are_those_of_transformers(tmp_path: Path, begin: str | None) -> None:
    from transformers import AutoTokenizer

    made = bpe(WORDS, {"<s>": True})
    made.enable_padding(length=8)
    save_tokenizer(tmp_path, made, **({"bos_token": begin} if begin else {}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text, ids in _tokens(tmp_path).items():
        given = (begin or "") + text
        assert list(ids) == tokenizer(given, add_special_tokens=False)["input_ids"]


def test_a_token_that_only_the_settings_name_is_one(tmp_path: Path) -> None:
    made = bpe(WORDS)
    save_tokenizer(tmp_path, made, bos_token="the")
    tokens = _tokens(tmp_path)
    assert tokens["the cat"][0] == made.token_to_id("the") == tokens["the cat"][1]


@pytest.mark.parametrize(
    "table", [{}, {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, {"model": "x"}]
)
def test_broken_tokenizers_are_told(tmp_path: Path, table: dict[str, object]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(UserError) as caught:
        _tokens(tmp_path)
    assert caught.value.where == "model 'a', tokenizer.json"


def test_a_first_token_that_is_no_text(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, bpe(WORDS), bos_token=[1])
    with pytest.raises(UserError, match="is no token"):
        _tokens(tmp_path)


def test_a_model_without_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        _tokens(tmp_path)
