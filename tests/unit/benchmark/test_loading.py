"""What lm-eval's models are made with; a stand-in takes vLLM's place, which needs a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from shardmerge.base.errors import UserError
from shardmerge.benchmark import harness, loading
from shardmerge.benchmark.job import BenchmarkJob, run_job
from shardmerge.benchmark.options import EvalOptions

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "resources" / "demo" / "midnight-tiny"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"
TASKS = {
    "asks": """\
task: asks
output_type: generate_until
custom_dataset: !function data.load
test_split: test
fewshot_split: test
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["."], do_sample: false, max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "runs": "include: asks.yaml\ntask: runs\nunsafe_code: true\n",
    "both": "group: both\ntask: [asks, runs]\n",
}
DATA = """\
import datasets
def load(**_):
    rows = [{"q": f"q{i}", "a": "yes" if i % 2 else "no"} for i in range(10)]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "data.py").write_text(DATA)
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def model_with(folder: Path, **templates: str) -> Path:
    """Return a copy of a demo model that has chat templates."""
    shutil.copytree(MODEL, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    found: Any = [{"name": name, "template": text} for name, text in templates.items()]
    config["chat_template"] = templates["alone"] if set(templates) == {"alone"} else found
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register a model of lm-eval's that notes what it is made with and asked."""
    import lm_eval.models  # noqa: F401 (else lm-eval's own models are not known)
    from lm_eval.api import registry
    from lm_eval.api.model import LM
    from transformers import AutoTokenizer

    class StandIn(LM):
        made: ClassVar[dict[str, Any]] = {}
        asked: ClassVar[list[Any]] = []

        def __init__(self, **arguments: Any) -> None:
            super().__init__()
            type(self).made = arguments
            self.tokenizer = AutoTokenizer.from_pretrained(arguments["pretrained"])
            self.hf_chat_template = self.tokenizer.chat_template

        @property
        def tokenizer_name(self) -> str:
            return "stand-in"

        def chat_template(self, chat_template: Any = False) -> str:
            return self.tokenizer.chat_template[chat_template]

        def apply_chat_template(self, chat_history: Any, **_: Any) -> str:
            return self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, chat_template=self.hf_chat_template
            )

        def generate_until(self, requests: Any) -> list[str]:
            type(self).asked = [request.args for request in requests]
            return ["yes" for _ in requests]

        loglikelihood = loglikelihood_rolling = generate_until

    StandIn.made, StandIn.asked = {}, []
    if "stand-in" not in registry.model_registry:
        registry.register_model("stand-in")(StandIn)
        return StandIn
    found = registry.get_model("stand-in")
    found.made, found.asked = {}, []
    return found


def measured(
    tmp_path: Path, tasks: Path, model: Path, task: str, manager: Any = None, **options: Any
) -> Any:
    """Return the result of a task on the stand-in; finding tasks may take seconds."""
    chosen = EvalOptions(backend="stand-in", **options)
    job = BenchmarkJob(model, "m", {task: chosen}, {task: tmp_path / "r.json"}, {}, (tasks,))
    manager = manager or harness.find_tasks([task], job.folders)
    failures = run_job(job, manager, lambda line: None)
    assert failures == {}
    return json.loads((tmp_path / "r.json").read_text())


class TestArguments:
    def test_of_vllm_spread_tensors_over_the_gpus(self) -> None:
        options = EvalOptions(
            backend="vllm", gpus=4, dtype="bfloat16", device="cuda", batch_size="auto",
            seed=(1, 2, 3, 4), think_end_token="</think>", model_args={"max_length": 9},
        )  # fmt: skip
        assert loading.model_arguments(MODEL, options, None) == {
            "pretrained": str(MODEL),
            "dtype": "bfloat16",
            "batch_size": "auto",
            "tensor_parallel_size": 4,
            "load_format": "safetensors",
            "trust_remote_code": False,
            "seed": 3,
            "think_end_token": "</think>",
            "max_length": 9,
        }

    def test_nothing_that_is_given_loads_code_or_pickles(self) -> None:
        given = {"trust_remote_code": True, "use_safetensors": False, "pretrained": "a/b"}
        made = loading.model_arguments(MODEL, EvalOptions(model_args=given), None)
        assert (made["trust_remote_code"], made["use_safetensors"]) == (False, True)
        assert made["pretrained"] == str(MODEL)

    def test_vllm_that_is_not_installed_is_told(self) -> None:
        pytest.importorskip("lm_eval")
        with pytest.raises(UserError, match="needs the package vllm") as caught:
            loading.language_model(MODEL, EvalOptions(backend="vllm", device="cuda"))
        assert "envs/vllm.yaml" in str(caught.value)


class TestStandIn:
    def test_is_loaded_and_asked_as_the_options_say(
        self, stand_in: Any, tmp_path: Path, tasks: Path
    ) -> None:
        model = model_with(tmp_path / "model", default="D", brief=TEMPLATE)
        result = measured(
            tmp_path, tasks, model, "asks", gpus=2, limit=0.35, num_fewshot=1,
            apply_chat_template="brief", fewshot_as_multiturn=True, system_instruction="Be brief.",
            gen_kwargs={"temperature": 0.5, "until": ["!"]}, seed=(0, 1, 2, 3),
        )  # fmt: skip
        assert stand_in.made["tensor_parallel_size"] == 2
        prompt, generation = stand_in.asked[0]
        assert len(stand_in.asked) == 4
        assert prompt.startswith("system:Be brief.;user:q") and prompt.endswith(";user:q0;")
        assert ";assistant:" in prompt
        assert (generation["temperature"], generation["until"]) == (0.5, ["!"])
        assert generation["max_gen_toks"] == 5, "the task's own settings stay below"
        config = result["config"]
        assert (config["model"], config["limit"], config["fewshot_seed"]) == ("stand-in", 0.35, 3)
        assert config["apply_chat_template"] == "brief"
        assert config["gen_kwargs"] == {"temperature": 0.5, "until": ["!"]}
        assert result["n-samples"]["asks"] == {"original": 10, "effective": 4}
        assert result["results"]["asks"]["exact_match,none"] == 0.5

    def test_a_group_that_runs_code_only_where_it_may(
        self, stand_in: Any, tmp_path: Path, tasks: Path
    ) -> None:
        manager = harness.find_tasks(["both"], [tasks])
        with pytest.raises(UserError, match="'runs' runs code that the model writes"):
            harness.load_task(manager, "both", EvalOptions())
        result = measured(tmp_path, tasks, MODEL, "both", manager, allow_code_execution=True)
        assert set(result["results"]) >= {"asks", "runs"}


class TestTemplates:
    def test_of_the_model_are_asked_before_it_is_loaded(self, tmp_path: Path) -> None:
        several = model_with(tmp_path / "several", rag=TEMPLATE, tool=TEMPLATE)
        alone = model_with(tmp_path / "alone", alone=TEMPLATE)
        loading.check_templates(several, ["rag", False])
        loading.check_templates(alone, [True])
        loading.check_templates(MODEL, [False])
        for folder, name, told in [
            (MODEL, True, "has no chat template\n"),
            (several, "rg", "Did you mean 'rag'"),
            (several, True, "none of them `default`"),
            (alone, "rag", "Write `true`|write `true`"),
        ]:
            with pytest.raises(UserError, match=told):
                loading.check_templates(folder, [name])

    def test_transformers_uses_the_one_that_is_named(self, tmp_path: Path) -> None:
        folder = model_with(tmp_path / "m", default="default", brief=TEMPLATE)
        model = loading.language_model(folder, EvalOptions())
        said = [{"role": "user", "content": "hi"}]
        for name, told in {"brief": "user:hi;", True: "default"}.items():
            with loading.chat_template(model, name):
                assert model.apply_chat_template(said) == told
        assert set(model.tokenizer.chat_template) == {"default", "brief"}


class TestExports:
    """What is loaded from a folder of GGUF files is asked of lm-eval by the file's name."""

    def test_one_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        registry = pytest.importorskip("lm_eval.api.registry")
        told: dict[str, Any] = {}

        class Model:
            create_from_arg_obj = staticmethod(told.update)

        monkeypatch.setattr(registry, "get_model", lambda name: Model)
        (tmp_path / "m-Q8_0.gguf").touch()
        loading.language_model(tmp_path, EvalOptions(), beside=loading.Beside(tmp_path / "model"))
        assert told["gguf_file"] == "m-Q8_0.gguf" and not told["use_safetensors"]
        assert told["tokenizer"] == str(tmp_path / "model")
        assert told["trust_remote_code"] is False

    def test_split_files_are_refused_with_the_key(self, tmp_path: Path) -> None:
        for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"):
            (tmp_path / name).touch()
        with pytest.raises(UserError, match=r"(?s)has 2 files.*split_size"):
            loading.language_model(tmp_path, EvalOptions())

    def test_another_backend_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").touch()
        with pytest.raises(UserError, match="which vLLM does not measure here"):
            loading.language_model(tmp_path, EvalOptions(backend="vllm"))


class TestCompressedTensors:
    """Exports that transformers unpacks with compressed-tensors."""

    class Hf:
        def _get_config(self) -> None:
            self._config = SimpleNamespace(quantization_config={})

    def kind(self, folder: Path, **told: Any) -> Any:
        config = {"quantization_config": {"quant_method": "compressed-tensors"} | told}
        (folder / "config.json").write_text(json.dumps(config))
        return loading._unpacking(self.Hf, folder)

    def test_other_models_are_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        assert loading._unpacking(self.Hf, tmp_path) is self.Hf
        assert self.kind(tmp_path, quant_method="gptq") is self.Hf

    def test_floats_of_4_bits_are_unpacked_when_loaded(self, tmp_path: Path) -> None:
        pytest.importorskip("compressed_tensors")
        assert self.kind(tmp_path, format="pack-quantized") is self.Hf
        model = self.kind(tmp_path, format="nvfp4-pack-quantized")()
        model._get_config()
        assert model._config.quantization_config == {"dequantize": True}

    def test_without_the_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loading, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="stored by compressed-tensors") as caught:
            self.kind(tmp_path)
        assert "backend: vllm" in str(caught.value.hint)
