"""Vocabularies from tokenizers' files, as transformers has them; merged files, as it loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from helpers.tiny_tokenizers import bpe, save_tokenizer
from shardmerge.base.errors import UserError
from shardmerge.compose.tokenizer.combine import Tokenizer as Tokens
from shardmerge.compose.tokenizer.combine import union
from shardmerge.package.tokenizer import tokenizer_text
from shardmerge.plan.description import TokenizerContent
from shardmerge.sources.tokenizer.files import read_vocabulary
from shardmerge.sources.tokenizer.vocabulary import Vocabulary

ADDED = {"<s>": True, "</s>": True, "<y>": False}


def read(folder: Path) -> Vocabulary:
    names = [path.name for path in folder.iterdir()]
    return read_vocabulary(names, lambda name: (folder / name).read_bytes(), "model 'm'")


def loaded(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def both(folder: Path) -> Vocabulary:
    """Return a folder's vocabulary after showing that transformers has the same."""
    found, theirs = read(folder), loaded(folder)
    assert dict(found.ids) == theirs.get_vocab()
    assert sorted(found.added) == sorted(theirs.added_tokens_encoder)
    return found


class TestVocabulary:
    def test_short_and_back(self) -> None:
        found = Vocabulary.of({"a": 0, "c": 3, "<s>": 1}, ["<s>"])
        assert found.tokens == ["a", "<s>", None, "c"] and len(found) == 4
        assert list(found.ids) == ["a", "<s>", "c"]
        assert found.added == ("<s>",)
        assert Vocabulary(found.text) == found

    def test_none(self) -> None:
        none = Vocabulary.of({})
        assert len(none) == 0 and not none.ids


class TestReading:
    def test_bpe(self, tmp_path: Path) -> None:
        save_tokenizer(tmp_path, bpe(["the", "cat"], ADDED), bos_token="<s>", eos_token="</s>")
        assert both(tmp_path).added == ("<s>", "</s>", "<y>")

    def test_tokens_that_only_the_settings_name(self, tmp_path: Path) -> None:
        settings = {"pad_token": "<pad>", "bos_token": "<s>", "unk_token": "t"}
        settings["extra_special_tokens"] = ["<e>", "<s>"]
        save_tokenizer(tmp_path, bpe(["the"], ADDED), **settings)
        found = both(tmp_path)
        assert found.added[-2:] == ("<pad>", "<e>")
        assert "t" in found.added and found.ids["t"] == bpe(["the"]).get_vocab()["t"]

    def test_added_tokens_decoder(self, tmp_path: Path) -> None:
        row = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        decoder = {"40": {"content": "<late>", "special": True} | row}
        save_tokenizer(tmp_path, bpe(["the"], ADDED), added_tokens_decoder=decoder)
        assert both(tmp_path).added[-1] == "<late>"

    def test_special_tokens_map(self, tmp_path: Path) -> None:
        save_tokenizer(tmp_path, bpe(["the"], ADDED))
        text = json.dumps({"bos_token": {"content": "<s>"}, "pad_token": "<pad>"})
        (tmp_path / "special_tokens_map.json").write_text(text)
        assert "<pad>" in both(tmp_path).ids

    def test_word_level_and_unigram(self, tmp_path: Path) -> None:
        word = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
        pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
        for name, made in (("word", word), ("pieces", pieces)):
            (tmp_path / name).mkdir()
            save_tokenizer(tmp_path / name, made)
            both(tmp_path / name)

    def test_sentencepiece(self, tmp_path: Path) -> None:
        def piece(text: str, kind: int) -> bytes:
            data = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15\0\0\0\0"
            data += b"\x18" + bytes([kind])
            return b"\x0a" + bytes([len(data)]) + data

        pieces = [("<unk>", 2), ("<s>", 3), ("▁the", 1), ("é", 1)]
        trainer = b"\x12\x02\x18\x01"  # the other messages of the file are passed over
        data = b"".join(piece(*one) for one in pieces) + trainer
        (tmp_path / "tokenizer.model").write_bytes(data)
        (tmp_path / "added_tokens.json").write_text('{"<x>": 5, "<w>": 4}')
        found = read(tmp_path)
        assert found.tokens == ["<unk>", "<s>", "▁the", "é", "<w>", "<x>"]

    def test_vocab_files(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.txt").write_text("[PAD]\na\n##b\n")
        assert read(tmp_path).tokens == ["[PAD]", "a", "##b"]
        (tmp_path / "vocab.json").write_text('{"b": 1, "a": 0}')
        assert read(tmp_path).tokens == ["a", "b"]

    def test_without_a_tokenizer(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        assert read(tmp_path) == Vocabulary.of({})

    @pytest.mark.parametrize(
        ("name", "data", "match"),
        [
            ("tekken.json", b"{}", "'tekken.json' only"),
            ("tokenizer.json", b"{", "is not JSON"),
            ("tokenizer.json", b'{"model": {}}', "not a tokenizer that can be read"),
            ("tokenizer.model", b"\x0a\x7f", "ends too early"),
            ("tokenizer.model", b"\x0b", "wire type 3"),
            ("vocab.json", b"[]", "is not a JSON object"),
        ],
    )
    def test_broken(self, tmp_path: Path, name: str, data: bytes, match: str) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=match):
            read(tmp_path)


class TestUnion:
    def of(self, key: Any, ids: Any, added: Any = ()) -> Any:
        return Tokens.of(key, Vocabulary.of(ids, added))

    def test_order(self) -> None:
        a = self.of("a", {"x": 0, "<s>": 1}, ["<s>"])
        b = self.of("b", {"y": 1, "z": 0, "<t>": 2, "w": 3}, ["<t>"])
        c = self.of("c", {"w": 0, "v": 1, "<s>": 2, "y": 3}, ["w", "<s>"])
        made = union(a, [b, c])
        new = sorted(made.ids, key=made.ids.get)
        # w is an added token in c, so it is one here
        assert new == ["x", "<s>", "z", "y", "v", "<t>", "w"]
        assert made.added == {
            "<s>": "a", "z": None, "y": None, "v": None, "<t>": "b", "w": "c"
        }  # fmt: skip
        assert made.source == "a" and not made.is_original

    def test_of_the_same(self) -> None:
        a = self.of("a", {"x": 0, "<s>": 1}, ["<s>"])
        b = self.of("b", {"<s>": 1, "x": 0}, ["<s>"])
        assert union(a, [b]).is_original

    def test_within(self) -> None:
        a = self.of("a", {"x": 0, "<s>": 1, "<t>": 2}, ["<s>", "<t>"])
        assert a.within(3) is a
        assert dict(a.within(2).ids) == {"x": 0, "<s>": 1}
        assert dict(a.within(2).added) == {"<s>": "a"}


class TestWriting:
    def write(self, folder: Path, made: Tokens, donors: dict[str, Path]) -> Path:
        """Write a tokenizer's files as a package has them and return their folder."""
        tokens = TokenizerContent(
            source=made.source,
            within=min(len(made.original), made.size),
            added=tuple((token, made.ids[token], key) for token, key in made.added.items()),
            made=(),
            read=(),
        )
        texts = {
            (key, path.name): path.read_text()
            for key, donor in donors.items()
            for path in donor.glob("*.json")
        }
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text(tokenizer_text(name, tokens, texts))
        return folder

    def test_union_loads(self, tmp_path: Path) -> None:
        donors = {"a": tmp_path / "a", "b": tmp_path / "b"}
        for folder in donors.values():
            folder.mkdir()
        save_tokenizer(donors["a"], bpe(["the", "cat"], ADDED), bos_token="<s>", pad_token="<p>")
        save_tokenizer(donors["b"], bpe(["the", "dog"], {"<x>": True, "<y>": True}))
        a, b = (Tokens.of(key, read(folder)) for key, folder in donors.items())
        made = union(a, [b])
        theirs = loaded(self.write(tmp_path / "out", made, donors))
        assert theirs.get_vocab() == dict(made.ids)
        text = "the<x> dog<y>cat<s>"
        numbers = theirs.encode(text)
        assert theirs.decode(numbers) == text
        for token in ("the", "<x>", "dog", "<y>", "cat", "<s>"):
            assert made.ids[token] in numbers
        flags = {t.content: t.special for t in theirs.added_tokens_decoder.values()}
        assert flags["<x>"] and flags["<p>"] and not flags["<y>"] and not flags["dog"]

    def test_tokens_without_an_embedding_go(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        original = bpe(["the", "cat", "sat"], ADDED)
        save_tokenizer(tmp_path / "a", original, bos_token="<s>", pad_token="<pad>")
        whole = Tokens.of("a", read(tmp_path / "a"))
        made = whole.within(original.get_vocab()["sat"])
        assert "sa" in made.ids and "sat" not in made.ids
        theirs = loaded(self.write(tmp_path / "out", made, {"a": tmp_path / "a"}))
        assert theirs.get_vocab() == dict(made.ids)
        assert theirs.bos_token is None and theirs.pad_token is None
        assert theirs.decode(theirs.encode("sat the")) == "sat the"
