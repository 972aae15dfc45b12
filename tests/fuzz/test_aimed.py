"""Inputs that were made to hang, to fill memory or to end in a traceback: each gets a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.running import Target, run_cases
from fuzz.targets import target
from shardmerge.base.errors import UserError, did_you_mean, misspelt
from shardmerge.base.files import load_json
from shardmerge.base.jsontext import parse_json
from shardmerge.base.patterns import Patterns
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.hub.ambient import TIMEOUT, seconds

HUGE = 2**63 - 1


def row(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} | changes


def said(name: str, data: bytes) -> str:
    """Return what a target says of an input, shown to take no longer and no more than it may."""
    one = target(name)

    def run(case: bytes) -> None:
        try:
            one.run(case)
        except UserError as error:
            raise AssertionError(str(error)) from None  # so that it leaves the process

    faults = run_cases(Target(name, (data,), lambda rng, seed: seed, run), seed=0, count=1)
    assert faults, "it is accepted"
    (fault,) = faults
    assert fault.place.startswith("AssertionError"), f"{fault.place}\n{fault.trace}"
    return fault.trace


def header(table: Any) -> bytes:
    return json.dumps(table).encode()


class TestHeaders:
    @pytest.mark.parametrize(
        ("table", "says"),
        [
            ({"a": row(shape=[HUGE] * 40_000)}, "40000 dimensions"),
            ({"a": row(shape=[HUGE] * 16)}, "needs"),
            ({"a": row(dtype=[])}, "unknown dtype"),
            ({"a": row(dtype={"b": "c" * 10**6})}, "unknown dtype"),
            ({"\ud800": row()}, "half of a character"),
            ({"a\nb": row()}, "do not show"),
            ({"a" * 5000: row()}, "5000 characters"),
            ({"model.layers.40000000.a.weight": row()}, "layer '40000000'"),
            ({f"model.layers.{'9' * 20}.a.weight": row()}, "more than 10000 layers"),
            ({str(i): row() for i in range(200_001)}, "more than 200000 tensors"),
            ({"__metadata__": {"a": 1}}, "table of texts"),
        ],
        ids=range(11),
    )
    def test_tables(self, table: dict[str, Any], says: str) -> None:
        assert says in said("header", header(table))

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (b"[" * 10**6, "not JSON"),
            (b'{"a":' * 150 + b"1" + b"}" * 150 + b"," * 9, "not JSON"),
            (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10**6 + b"]}}", "1000000 digits"),
            (b'{"a": [' + b"0," * 13_000_000 + b"0]}", "more than 8000000 values"),
            ('{"a\udc80": {}}'.encode(errors="surrogateescape"), "not UTF-8"),
            (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 0]}}', "whole numbers"),
        ],
        ids=range(6),
    )
    def test_texts(self, data: bytes, says: str) -> None:
        assert says in said("header", data)


class TestConfigurations:
    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"text_config": ["a"]}, "`text_config: ['a']`, which is not an object"),
            ({"rope_scaling": "linear"}, "`rope_scaling: 'linear'`, which is not an object"),
            ({"rope_theta": "x"}, "`rope_theta: 'x'`, which is not a finite number"),
            ({"rope_theta": float("nan")}, "not a finite number"),
            ({"rope_theta": True}, "not a finite number"),
        ],
    )
    def test_rope(self, values: dict[str, Any], says: str) -> None:
        assert says in said("config", json.dumps(values).encode())

    def test_number_of_400_digits(self) -> None:
        assert "401 digits" in said("config", b'{"rope_theta": 1' + b"0" * 400 + b"}")

    def test_infinite_number_where_none_is_asked_for(self) -> None:
        target("config").run(b'{"time_step_limit": [0.0, Infinity]}')

    def test_infinite_number_that_would_be_written(self) -> None:
        config = {"num_hidden_layers": 2, "layer_types": [float("inf"), "a"]}
        said_of_it = said("config-plan", json.dumps(config).encode())
        assert "layer_types" in said_of_it and "not finite" in said_of_it


class TestTokenizers:
    @pytest.mark.parametrize(
        ("vocab", "says"),
        [
            ({"a": -1}, "the id -1"),
            ({"a": 10**8}, "the id 100000000"),
            ({"a": 10**10}, "the id 10000000000"),
            ({"a": 1.0}, "the id 1.0"),
            ({"a": True}, "the id True"),
            ({"a": "0"}, "the id '0'"),
            ({"a": float("nan")}, "the id nan"),
            ({"a": 0, "b": 0}, "the tokens 'a' and 'b' one id, 0"),
        ],
    )
    def test_ids(self, vocab: dict[str, Any], says: str) -> None:
        assert says in said("vocab.json", json.dumps(vocab).encode())
        table = {"model": {"vocab": {"x": 9}}, "added_tokens": []}
        table["added_tokens"] = [{"content": t, "id": i} for t, i in vocab.items()]
        assert "id" in said("tokenizer.json", json.dumps(table).encode())

    def test_many_tokens_that_only_settings_name(self) -> None:
        added = json.dumps({str(i): i for i in range(100_000)}).encode()
        target("vocab.json").run(added)  # was quadratic

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (b"\x0a\x02\x15\0", "no text"),
            (b"\x0a" + b"\xff" * 10**6, "more than 64 bits"),
            (b"\x0a\x03\x0a\x01\xff", "can't decode"),
        ],
        ids=range(3),
    )
    def test_sentencepiece(self, data: bytes, says: str) -> None:
        assert re.search(says, said("tokenizer.model", data))

    def test_deep(self) -> None:
        assert "not JSON" in said("tokenizer.json", b"[" * 10**6)
        deep = b'{"added_tokens": ' + b"[" * 300 + b"]" * 300 + b"}"
        assert "within each other" in said("tokenizer.json", deep)


class TestAdapters:
    def adapter(self, **changes: Any) -> bytes:
        case = json.loads(target("adapter").seeds[0])
        return json.dumps(case | {"config": case["config"] | changes}).encode()

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"rank_pattern": []}, "`rank_pattern: \\[\\]`, which is not an object"),
            ({"rank_pattern": {"(": 3}}, "no regular expression"),
            ({"rank_pattern": {r"(a)\1": 3}}, "not read here"),
            ({"rank_pattern": {"(?=a)": 3}}, "not read here"),
            ({"rank_pattern": {"((a{100}){100}){100}": 3}}, "repetitions written out"),
            ({"rank_pattern": {"mlp.up_proj": 3}, "lora_alpha": 1e308}, "lora_alpha|scales"),
            ({"r": 1e300}, "has rank"),
            ({"lora_alpha": None}, "no lora_alpha"),
        ],
    )
    def test_mistakes(self, changes: dict[str, Any], says: str) -> None:
        assert re.search(says, said("adapter", self.adapter(**changes)))

    def test_pattern_that_never_ended(self) -> None:
        found = Patterns(["([a-z._0-9]+)+!", "(.*)*q"])
        assert found.first("model.layers.0.self_attn.q_proj" * 20) is None

    def test_too_much_work_is_refused(self) -> None:
        found = Patterns([".*.*.*.*x"])
        with pytest.raises(ValueError, match="too many patterns"):
            for _ in range(10_000):
                found.first("a" * 1000)

    @given(
        st.text("ab.|*+?()^$[]-{}0123\\dwW", max_size=14),
        st.lists(st.text("ab.01-\n", max_size=8), min_size=1, max_size=8),
    )
    def test_as_peft_reads_them(self, pattern: Any, names: Any) -> None:
        """What is read matches what Python's matcher does, on names too short to hang it."""
        try:
            ours = Patterns([pattern])
        except ValueError:
            return
        for name in names:
            theirs = re.match(rf"(.*\.)?({pattern})$", name) is not None
            assert (ours.first(name) is not None) == theirs, name


def chain(count: int, reads: int, method: str = "slerp") -> bytes:
    """Return documents that each read so many before them."""
    known = ["a", "b"]
    documents = []
    for number in range(count):
        models = ", ".join(f"{{model: {name}}}" for name in known[-reads:])
        models += ", {model: c}" if reads == 1 else ""
        documents.append(
            f"name: d{number}\nmerge_method: {method}\nbase_model: {known[-reads]}\n"
            f"models: [{models}]\nparameters: {{t: 0.5, weight: 0.5}}\ndtype: float16\n"
            "chat_template: auto\n"
        )
        known.append(f"d{number}")
    return "---\n".join(documents).encode()


def linear(weight: str) -> bytes:
    return (
        f"merge_method: linear\nmodels: [{{model: a, parameters: {{weight: {weight}}}}}, "
        "{model: b, parameters: {weight: 1}}]\n"
    ).encode()


class TestRecipes:
    def test_documents_that_read_the_two_before(self) -> None:
        assert "more than 2000 steps" in said("plan", chain(24, 2))
        target("plan").run(chain(8, 2))

    def test_many_models_are_compared_once(self) -> None:
        models = ", ".join(f"{{model: m{i}}}" for i in range(15_000))
        text = f"merge_method: linear\nmodels: [{models}, {{model: m0}}]\n"
        assert "listed twice" in said("recipe", text.encode())  # was quadratic

    def test_long_gradient(self) -> None:
        target("plan").run(linear("[" + "1, " * 10_000 + "1]"))

    def test_linear_documents_stay_short(self) -> None:
        target("plan").run(chain(10, 2, "task_arithmetic"))

    def test_chain(self) -> None:
        target("plan").run(chain(32, 1))
        assert "more than 32 documents" in said("plan", chain(33, 1))
        assert "more than 32 documents" in said("plan", chain(400, 1))

    @pytest.mark.parametrize(
        ("weight", "says"),
        [
            ("1.0e+308", "may be 3e\\+38 at most"),
            ("9" * 5000, "cannot be read as YAML's `int`"),
            ("'" + "9" * 400 + "'", "must be a number"),
            ("2001-99-99", "`timestamp`"),
            ("!!int ''", "`int`"),
            ("!!bool x", "`bool`"),
            ("!!timestamp x", "`timestamp`"),
            ('"\\ud800"', "half of a character"),
            ("\x07", "U\\+0007"),
            ("!x y", "tag '!x' is not known"),
            ("{? !x y : z}", "tag '!x' is not known"),
        ],
    )
    def test_values(self, weight: str, says: str) -> None:
        assert re.search(says, said("plan", linear(weight)))

    def test_weights_that_multiply(self) -> None:
        text = linear("2.0e+38").decode() + "parameters: {normalize: false}\n"
        both = "name: s\n" + text + "---\n" + text.replace("model: a", "model: s")
        assert "too large for float32" in said("plan", both.encode())

    def test_aliases(self) -> None:
        laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        merges = "a: &a {x: 1, y: 2}\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True):
            laughs += f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
            merges += f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n"
        assert "more than 100000 values" in said("recipe", laughs.encode())
        assert "more than 100000 values" in said("recipe", merges.encode())
        assert "nested too deeply" in said("recipe", b"a: &a {<<: *a}")

    def test_padding(self) -> None:
        text = linear("1").decode() + "tokenizer: {source: base, pad_to_multiple_of: 1000000000000}"
        assert "from 1 to 1048576" in said("plan", text.encode())

    def test_too_many_layers(self) -> None:
        rows = "".join("  - sources: [{model: a, layer_range: [0, 2]}]\n" for _ in range(5001))
        text = f"merge_method: passthrough\nslices:\n{rows}"
        assert "more than 10000 layers" in said("plan", text.encode())

    @pytest.mark.parametrize("name", ["ab" * 80, "x" * 25, "é" * 90, "a" + "bc" * 20])
    def test_names_that_no_folder_has(self, name: str) -> None:
        text = f"name: {name}\n" + linear("1").decode()
        assert "the document's name" in said("plan", text.encode())

    def test_long(self) -> None:
        assert "a recipe may have 500000" in said("recipe", b"a: b\n" * 10**6)


class TestConfiguration:
    @pytest.mark.parametrize(
        "values",
        [{"max_shard_size": "9" * 5000}, {"disk_budget": 10**400}, {"max_shard_size": 1e308}],
        ids=range(3),
    )
    def test_sizes(self, values: dict[str, Any]) -> None:
        with pytest.raises(UserError, match="larger than any disk"):
            target("configuration").run(json.dumps({"recipes": ["a"]} | values).encode())

    def test_whole_number_with_a_point(self) -> None:

        assert (
            load_settings({"recipes": ["a"], "max_shard_size": 5.0e9}).max_shard_size == 5 * 10**9
        )


class TestFiles:
    def test_larger_than_any(self, tmp_path: Path) -> None:
        path = tmp_path / "config.json"
        with open(path, "wb") as file:
            file.truncate(1 << 40)  # of no blocks
        with pytest.raises(UserError, match="more than any real one"):
            load_json(path)

    def test_time_of_the_hub_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for text in ("abc", "-1", "1e9", "9" * 5000):
            monkeypatch.setenv(TIMEOUT, text)
            with pytest.raises(UserError, match="whole number of seconds"):
                seconds(TIMEOUT)


class TestMessages:
    def test_halves_of_characters_are_written_out(self) -> None:
        assert str(UserError("names '\ud800'", "x\udcff")) == "x\\udcff: names '\\ud800'"

    def test_are_short(self) -> None:
        assert len(str(UserError("a" * 10**7, "b" * 10**7, "c" * 10**7))) < 10_000

    def test_suggestions_take_no_time(self) -> None:
        assert misspelt("a" * 10**6, ["a" * 10**6 + "b"]) is None
        assert did_you_mean("model.1x", [f"model.{i}" for i in range(300_000)])

    def test_json_of_strangers(self) -> None:
        assert parse_json('{"a": 1, "a": 2}', "x") == {"a": 2}
        with pytest.raises(UserError, match="twice"):
            parse_json('{"a": 1, "a": 2}', "x", unique=True)
        assert parse_json('"\\ud83d\\ude00"', "x") == "😀"
