"""What each key of the configuration changes: a digest that jobs depend on, or nothing that counts.

A key that is new in the schema fails here until somebody says which of the two it is.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.models import llama
from shardmerge.base.errors import UserError
from shardmerge.plan import files
from shardmerge.plan.decide import decide
from shardmerge.recipe.settings import SCHEMA, Settings, load_settings
from shardmerge.run.targets import Targets

RECIPE = """\
name: early
merge_method: linear
models:
  - {model: base, parameters: {weight: 0.5}}
  - {model: tuned, parameters: {weight: 0.75, density: 0.5}}
dtype: float16
---
name: out
merge_method: task_arithmetic
base_model: base
models:
  - {model: early, parameters: {weight: 0.5}}
  - {model: tuned, parameters: {weight: 0.25}}
dtype: float16
"""


@dataclass(frozen=True)
class Same:
    """Another value that changes no digest.

    Args:
        value: It.
        reason: Why nothing is to be made anew.
    """

    value: Any
    reason: str


_ESTIMATE = "what a job asks for is no part of what it makes"
_WAY = "how the same bytes come about"
#: Another value of each key, by its path. A plain one must change what jobs depend on.
OTHER: dict[str, Any] = {
    "recipes": ["other.yaml"],
    "sources": {"base": "base-copy", "tuned": "tuned"},
    "stages": ["early"],
    "numerics": "mergekit-0.1.5",
    "norm_merge": "geometric",
    "deltas": "fuse",
    "delta_dtype": "float32",
    "max_shard_size": "4KB",
    "allow_nonfinite": True,
    "silence": ["ignored-parameter"],
    "allow_pickle": Same(True, "what is converted is a source like others, known by its content"),
    "keep_sources": Same(False, "when fetched files go; the plan's key covers their schedule"),
    "disk_budget": "1GB",
    "link": Same("copy", _WAY),
    "device": Same("cuda", f"{_WAY}: a shard is checked against float64 wherever it was made"),
    "sources_check": Same("full", "small files are always hashed; for large ones there are jobs"),
    "results": "elsewhere",
    "resources.merge_threads": Same(2, _ESTIMATE),
    "resources.benchmark_threads": Same(4, _ESTIMATE),
    "resources.benchmark_mem_mb": Same(100, _ESTIMATE),
    "resources.disk_mb_per_second": Same(7, _ESTIMATE),
    "resources.fetch_on": Same("nodes", "where a file is fetched is no part of its content"),
    "resources.network_mb_per_second": Same(7, _ESTIMATE),
    "card.license": "mit",
    "card.description": "A model.",
    "card.prompt_format": "Ask.",
    "card.tags": ["x"],
    "card.pipeline_tag": "image-text-to-text",
    "card.picture": False,
    "card.models": {"out": {"license": "mit"}},
    "benchmark.models": ["sources"],
    "benchmark.reference": "base",
    "benchmark.tasks": ["one"],
    "benchmark.apply_chat_template": True,
    "benchmark.fewshot_as_multiturn": False,
    "benchmark.system_instruction": "Be brief.\nAnswer.",
    **{
        f"benchmark.gen_kwargs.{key}": value
        for key, value in {
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
            "num_beams": 2,
            "max_gen_toks": 64,
            "until": ["\n"],
        }.items()
    },
    **{
        f"benchmark.model_args.{key}": value
        for key, value in {
            "max_length": 512,
            "attn_implementation": "eager",
            "add_bos_token": True,
            "prefix_token_id": 1,
            "enable_thinking": False,
            "chat_template_args": {"effort": "low"},
            "truncation": True,
            "softmax_dtype": "float32",
            "max_batch_size": 8,
            "gpu_memory_utilization": Same(0.5, "how much of a GPU vLLM takes"),
            "enforce_eager": True,
        }.items()
    },
    "benchmark.backend": "vllm",
    "benchmark.think_end_token": "</think>",
    "benchmark.seed": 7,
    "benchmark.allow_code_execution": Same(True, "whether a task may run, not what it gives"),
    "benchmark.include_path": "tasks",
    **{
        f"benchmark.probes.{key}": value
        for key, value in {
            "text": "other.txt",
            "measure": ["needle"],
            "against": ["base"],
            "characters": 64,
            "context": 32,
            "stride": 4,
            "longest": 48,
            "lengths": [48],
            "depths": [0.5],
            "needles": 2,
            "needle": "It is {secret}.",
            "question": "Which? It is {secret}.",
            "symbols": "abc",
            "seed": 1,
        }.items()
    },
    "benchmark.limit": 3,
    "benchmark.half": "odd",
    "benchmark.num_fewshot": 2,
    "benchmark.batch_size": 4,
    "benchmark.device": "cuda",
    "benchmark.dtype": "bfloat16",
    "benchmark.per": Same("model", "whether tasks share a job; each has its result"),
    "benchmark.gpus": Same(2, "over how many devices a model is spread"),
    "exports.gguf.types": ["q8_0", "bf16"],
    "exports.gguf.imatrix": "other.yaml",
    "exports.gguf.split_size": "1GB",
    "exports.gguf.repository": "me/{name}-files",
    "exports.compressed.schemes": ["w4a16", "nvfp4a16"],
    "exports.compressed.ignore": ["lm_head"],
    "exports.compressed.group_size": 32,
    "exports.compressed.repository": "me/{name}-{form}-files",
    "llama_cpp": Same("elsewhere", "where the tools lie; their versions are in the record"),
    "sweep": Same(
        {
            "recipe": "own.yaml",
            "space": {"w": {"grid": [1]}},
            "objectives": {"one/acc": "maximize"},
        },
        "trials are recipes that are made of it, and given beside the settings",
    ),
    "publish.repository": "me/{name}-2",
    "publish.private": False,
    "publish.branch": "dev",
    "publish.tag": "v1",
    "publish.collection": "All of it",
    "publish.sign.key": "key.pem",
    "publish.sign.sigstore": True,
}
#: What another value of a key cannot do without.
NEEDED = {
    "benchmark.backend": {"device": "cuda", "probes": {"text": None}},
    "benchmark.fewshot_as_multiturn": {"apply_chat_template": True},
}
BASIS: dict[str, Any] = {
    "recipes": ["recipe.yaml"],
    "sources": {"base": "base", "tuned": "tuned"},
    "deltas": "store",
    "benchmark": {"tasks": ["one", "two"], "probes": {"text": "text.txt"}},
    "exports": {"gguf": {"types": ["q8_0"]}, "compressed": {"schemes": ["w4a16"]}},
    "publish": {"repository": "me/{name}"},
}


def keys(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Give the paths of all keys of a schema that have no keys of their own."""
    for name, rule in schema["properties"].items():
        if "properties" in rule:
            yield from keys(rule, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def basis(key: str) -> dict[str, Any]:
    config = copy.deepcopy(BASIS)
    config["benchmark"] |= NEEDED.get(key, {})
    return config


def changed(key: str, value: Any) -> dict[str, Any]:
    config = basis(key)
    *outer, last = key.split(".")
    table = config
    for name in outer:
        table = table.setdefault(name, {})
    assert table.get(last) != value
    table[last] = value
    return config


@pytest.fixture(scope="module", autouse=True)
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("settings")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(files.PLAN_VARIABLE, "")
        for seed, name in enumerate(("base", "tuned")):
            llama(Path(name), seed, layers=2, files=2)
        shutil.copytree("base", "base-copy")
        Path("tasks").mkdir()
        Path("tasks/one.yaml").write_text("task: one")
        Path("text.txt").write_text("A text.")
        Path("other.txt").write_text("Another text.")
        Path("recipe.yaml").write_text(RECIPE)
        Path("other.yaml").write_text(RECIPE.replace("0.25", "0.125"))
        yield


def decided(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the plan's key, and all that parameters and inputs of jobs are made of."""
    settings = load_settings(config)
    decision = decide(settings, say=lambda line: None)
    targets = Targets(settings, decision.plan)
    tasks = settings["benchmark"]["tasks"]
    seen = {
        "plan": _without_estimates(decision.plan.to_json()),
        "cards": [targets.card(name) for name in decision.plan.builds],
        "tables": [targets.tables(), *(targets.measurements(n) for n in decision.plan.builds)],
        "benchmarks": [targets.benchmark_identity(m, t) for m in targets.measured for t in tasks],
        "reference": targets.reference,
        "exports": [targets.exports.packages(), _variants(targets)],
        "repositories": [targets.publishing.repository(name) for name in decision.plan.builds],
        "publish": [settings["publish"], targets.publishing.receipts()],
    }
    assert decision.path is not None
    return Path(decision.path).stem, json.dumps(seen)


def _variants(targets: Targets) -> dict[str, str]:
    exports = targets.exports
    return {
        f"{form.name} {variant}": exports.identity(form.name, variant)
        for form in exports.forms()
        for variant in exports.variants(form.name)
    }


def _without_estimates(value: Any) -> Any:
    """Return a plan without what jobs ask for, memory and torch: no part of what they make."""
    if isinstance(value, dict):
        asked = ("memory", "torch")
        return {k: _without_estimates(v) for k, v in value.items() if not k.endswith(asked)}
    return [_without_estimates(v) for v in value] if isinstance(value, list | tuple) else value


class TestEveryKey:
    def test_is_classified(self) -> None:
        schema = json.loads(SCHEMA.read_text())
        assert sorted(keys(schema)) == sorted(OTHER)

    @pytest.mark.parametrize("key", OTHER)
    def test_changes_a_digest_or_nothing(self, key: str) -> None:
        value = OTHER[key]
        same = isinstance(value, Same)
        before = decided(basis(key))
        plan, seen = decided(changed(key, value.value if same else value))
        if same:
            assert seen == before[1], value.reason
        else:
            assert seen != before[1]
        if _planned(key):
            assert plan != before[0], "no plan may be taken for another's"

    @pytest.mark.parametrize("key", ["publish"])
    def test_the_rules_take_it_as_a_parameter(self, key: str) -> None:
        """What ``decided`` takes from the settings themselves, jobs see as it is there."""
        rules = "".join(p.read_text() for p in (SCHEMA.parents[2] / "rules").glob("*.smk"))
        before, found, _ = rules.partition(f'SETTINGS["{key}"]')
        assert found
        assert "params:" in before.rpartition("\nrule ")[2]


class TestPlanned:
    def test_no_other_setting_is_there_to_plan_with(self) -> None:
        """So what is added to the planner is added to the plan's key, or fails at once."""
        settings = load_settings(BASIS).planned()
        for key in json.loads(SCHEMA.read_text())["properties"]:
            if _planned(key) or key == "benchmark":
                assert key in settings.values
            else:
                with pytest.raises(KeyError):
                    settings[key]
        assert settings.measured == ("merged", "sources")

    def test_a_new_key_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        schema = json.loads(SCHEMA.read_text())
        schema["properties"]["fresh"] = {"type": "integer", "default": 1}
        monkeypatch.setattr("shardmerge.recipe.settings._schema", lambda: schema)
        one, two = load_settings(BASIS), load_settings({**BASIS, "fresh": 2})
        assert isinstance(one.planned(), Settings)
        assert one.planned() != two.planned()

    def test_unknown_keys_stay_refused(self) -> None:
        with pytest.raises(UserError, match="unknown key"):
            load_settings({**BASIS, "planned": False})


def _planned(key: str) -> bool:
    rule = json.loads(SCHEMA.read_text())["properties"][key.partition(".")[0]]
    return rule.get("planned", True)
