"""Options of lm-eval: whose go before whose, what they refuse, what decides a result."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.benchmark.options import EvalOptions, options_of, options_text, parse_options
from shardmerge.recipe.settings import load_settings


def benchmark(**keys: Any) -> Any:
    return load_settings({"recipes": ["r.yaml"], "benchmark": keys})["benchmark"]


def refused(**keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        benchmark(**keys)
    return str(caught.value)


class TestEntries:
    def test_names_alone_are_what_others_see(self) -> None:
        made = benchmark(
            models=["merged", {"model": "out", "limit": 3}], tasks=[{"task": "a"}, "b"]
        )
        assert (made["models"], made["tasks"]) == (["merged", "out"], ["a", "b"])

    def test_a_tasks_go_before_a_models_and_these_before_those_of_all(self) -> None:
        made = benchmark(
            limit=9,
            gen_kwargs={"temperature": 0.5, "top_k": 5},
            models=[{"model": "m", "limit": 8, "num_fewshot": 2, "gen_kwargs": {"top_k": 6}}],
            tasks=[{"task": "t", "limit": 0.5, "gen_kwargs": {"top_k": 7}}, "u"],
        )
        model = made["model_options"]["m"]
        found = options_of(made, model, "t")
        assert (found.limit, found.num_fewshot) == (0.5, 2)
        assert found.gen_kwargs == {"temperature": 0.5, "top_k": 7}
        assert options_of(made, model, "u").gen_kwargs == {"temperature": 0.5, "top_k": 6}
        assert options_of(made, None, "u").limit == 9

    def test_null_takes_an_option_back(self) -> None:
        made = benchmark(limit=9, tasks=[{"task": "t", "limit": None}])
        assert options_of(made, None, "t").limit is None

    def test_texts_of_a_command_line_mean_what_they_say(self) -> None:
        made = benchmark(
            apply_chat_template="true", think_end_token="128", limit="0.1", seed="[1, 2, 3, 4]",
            models=[{"model": "m", "num_fewshot": "5", "apply_chat_template": "rag"}],
        )  # fmt: skip
        found = options_of(made)
        assert (found.apply_chat_template, found.think_end_token, found.limit) == (True, 128, 0.1)
        assert found.seed == (1, 2, 3, 4)
        assert made["model_options"]["m"] == {"num_fewshot": 5, "apply_chat_template": "rag"}

    def test_one_seed_is_all_four(self) -> None:
        assert options_of(benchmark(seed=7)).seed == (7, 7, 7, 7)

    def test_turns_follow_the_template_as_in_lm_eval(self) -> None:
        assert options_of(benchmark(apply_chat_template=True)).fewshot_as_multiturn is True
        assert options_of(benchmark()).fewshot_as_multiturn is False

    def test_texts_for_models_may_have_lines(self) -> None:
        text = "You are brief.\n\nAnswer."
        made = benchmark(models=[{"model": "m", "system_instruction": text}], tasks=["t"])
        assert options_of(made, made["model_options"]["m"], "t").system_instruction == text


class TestRefusals:
    @pytest.mark.parametrize(
        "key",
        ["trust_remote_code", "pretrained", "peft", "gguf_file", "delta", "tokenizer", "autogptq"],
    )
    @pytest.mark.parametrize("where", ["all", "model"])
    def test_nothing_that_loads_code_or_pickles(self, key: str, where: str) -> None:
        table = {"model_args": {key: True}}
        told = refused(**table) if where == "all" else refused(models=[{"model": "m", **table}])
        assert f"unknown key {key!r}" in told

    def test_no_generation_that_loads_code(self) -> None:
        assert "unknown key 'custom_generate'" in refused(gen_kwargs={"custom_generate": "a/b"})
        assert "not allowed" in refused(model_args={"attn_implementation": "some/kernels"})

    @pytest.mark.parametrize(
        ("keys", "told"),
        [
            ({"limit": 2.5}, "neither a number of questions nor a share"),
            ({"tasks": [{"task": "t", "limit": 1.5}]}, "benchmark.tasks: t.limit"),
            ({"limit": 0}, "benchmark.limit"),
            ({"tasks": ["t", {"task": "t", "limit": 3}]}, "names 't' twice"),
            ({"tasks": [{"limit": 3}]}, "'task' is a required property"),
            ({"tasks": [{"task": "t", "limt": 3}]}, "Did you mean 'limit'?"),
            ({"tasks": [{"task": "t", "dtype": "auto"}]}, "unknown key 'dtype'"),
            ({"tasks": [{"task": "../t"}]}, "benchmark.tasks"),
            ({"fewshot_as_multiturn": True}, "needs a chat template"),
            ({"models": [{"model": "m", "fewshot_as_multiturn": True}]}, "benchmark.models: m"),
            ({"backend": "vllm"}, "needs a GPU"),
            ({"backend": "vllm", "device": "cuda:1"}, "`device` is cuda:1"),
            ({"models": [{"model": "m", "backend": "vllm"}]}, "benchmark.models: m"),
            ({"system_instruction": "a\x1b[2Jb", "seed": [1, 2]}, "benchmark.seed"),
        ],
    )
    def test_are_sentences_that_say_where(self, keys: dict[str, Any], told: str) -> None:
        assert told in refused(**keys)


class TestIdentity:
    def test_of_the_first_version_stays(self) -> None:
        """As it was before there were other options: results that are there stay valid."""
        found = options_of(benchmark(limit=40, include_path="tasks", tasks=["t"]), {}, "t")
        assert found.identity() == {
            "limit": 40,
            "num_fewshot": None,
            "batch_size": 16,
            "device": "cpu",
            "dtype": "float32",
            "include_path": "tasks",
        }

    def test_equal_settings_are_one_however_written(self) -> None:
        ways = [
            {"limit": 40, "apply_chat_template": True},
            {"limit": 40.0, "apply_chat_template": True, "fewshot_as_multiturn": True},
            {"tasks": [{"task": "t", "limit": 40}], "apply_chat_template": True, "seed": None},
            {"limit": 40, "apply_chat_template": True, "seed": [0, 1234, 1234, 1234]},
            {"limit": 40, "apply_chat_template": True, "gpus": 2, "allow_code_execution": True},
            {"limit": 40, "apply_chat_template": True,
             "model_args": {"gpu_memory_utilization": 0.5, "max_length": None}},
        ]  # fmt: skip
        found = {digest(options_of(benchmark(**way), None, "t").identity()) for way in ways}
        assert len(found) == 1

    def test_a_result_says_what_is_not_usual(self) -> None:
        assert options_text({"model": "hf", "limit": 3, "random_seed": 9}) is None
        config = {"model": "vllm", "apply_chat_template": True, "gen_kwargs": {"top_k": 3}}
        told = 'apply_chat_template true, gen_kwargs {"top_k":3}, backend vllm'
        assert options_text(config) == told
        texts = [options_text({"system_instruction": text}) or "" for text in ("a\nb", "a\nc")]
        assert texts[0] != texts[1]
        assert all(re.fullmatch(r"system_instruction of hash \w{8}", text) for text in texts)


class TestCommandLine:
    def test_what_jobs_are_told_comes_back(self) -> None:
        made = benchmark(
            gen_kwargs={"until": ["\n\n"]}, model_args={"max_length": 64}, limit=0.25, seed=3,
            apply_chat_template="rag", system_instruction="-x", think_end_token="</think>",
        )  # fmt: skip
        found = options_of(made)
        assert parse_options(found.to_json(), {}) == found

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("[]", "is no table in JSON"),
            ("{", "is no table in JSON"),
            ('{"model_args": {"trust_remote_code": true}}', "unknown key 'trust_remote_code'"),
            ('{"limit": -1}', "benchmark.limit"),
        ],
    )
    def test_is_checked_as_the_configuration_is(self, text: str, told: str) -> None:
        with pytest.raises(UserError, match=told):
            parse_options(text, {})

    def test_gives_way_to_a_tasks_own(self) -> None:
        found = parse_options('{"limit": 3}', {"limit": "9", "dtype": "auto"})
        assert found == EvalOptions(limit=3, dtype="auto")


def test_no_option_is_forgotten() -> None:
    """Every key of the configuration is an option, or says what is measured and how jobs share."""
    schema = json.loads(
        (Path(__file__).parents[3] / "config/schemas/config.schema.json").read_text()
    )
    keys = set(schema["properties"]["benchmark"]["properties"])
    assert keys - {"models", "tasks", "per", "reference", "probes"} == set(
        EvalOptions.__dataclass_fields__
    )
