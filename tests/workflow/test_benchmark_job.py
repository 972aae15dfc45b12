"""scripts/benchmark.py on the demo models, as the workflow calls it."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.hub_cases import wait_until

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "resources" / "demo" / "midnight-tiny"
TASKS = ROOT / "config" / "tasks"
QUESTIONS = 40
LOCAL = f"""\
include: {TASKS}/demo/_demo.yaml
dataset_kwargs: {{file: demo_B.jsonl}}
tag: []
"""
OWN_TASKS = {
    "runs_code": LOCAL + "task: runs_code\nunsafe_code: true\n",
    "writes": LOCAL
    + """\
task: writes
output_type: generate_until
doc_to_target: "{{answer}}"
doc_to_choice: null
generation_kwargs: {until: ["."], do_sample: false, max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "breaks": LOCAL + 'task: breaks\ndoc_to_text: "{{ no_such_column.x }}"\n',
    "far_away": """\
task: far_away
dataset_path: nobody/nothing-of-this-name
output_type: multiple_choice
test_split: test
doc_to_text: "{{x}}"
doc_to_target: 0
doc_to_choice: [a, b]
""",
    "pair": """\
group: pair
task: [demo_B, demo_C]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
""",
}


def command_line(folder: Any, *tasks: Any, model: Any = MODEL, options: Any = ()) -> list[str]:
    command = [sys.executable, ROOT / "scripts" / "benchmark.py"]
    command += ["--model", model, "--name", "midnight", "--limit", str(QUESTIONS)]
    command += ["--include-path", TASKS, "--batch-size", "40", *options]
    for task in tasks:
        command += ["--task", task, "--output", folder / f"{task}.json"]
    return list(map(str, command))


def benchmark(
    folder: Any,
    *tasks: Any,
    model: Any = MODEL,
    options: Any = (),
    cwd: Any = None,
    **environment: Any,
) -> tuple[Any, ...]:
    """Run a job; return the finished process and the folder of its outputs."""
    done = subprocess.run(
        command_line(folder, *tasks, model=model, options=options),
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    return done, folder


def started(folder: Any, *tasks: Any, options: Any = ()) -> subprocess.Popen:
    """Start a job."""
    return subprocess.Popen(
        command_line(folder, *tasks, options=options),
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def own_tasks(once: Callable[..., Any]) -> Any:
    def make(folder: Any) -> None:
        folder.mkdir()
        for name, text in OWN_TASKS.items():
            (folder / f"{name}.yaml").write_text(text)

    return once("own-tasks", make)


@pytest.fixture(scope="module")
def job(once: Callable[..., Any], own_tasks: Path) -> tuple[Any, ...]:
    """One job of six tasks, three of which cannot be run."""
    tasks = ("demo_B", "runs_code", "far_away", "breaks", "writes", "demo_C")

    def make(folder: Any) -> None:
        done, _ = benchmark(folder / "results", *tasks, options=("--include-path", own_tasks))
        told = {"returncode": done.returncode, "stderr": done.stderr}
        (folder / "done.json").write_text(json.dumps(told))

    folder = once("benchmark-job", make)
    return SimpleNamespace(**json.loads((folder / "done.json").read_text())), folder / "results"


def load(folder: Any, task: Any) -> Any:
    return json.loads((folder / f"{task}.json").read_text())


class TestJob:
    def test_a_failed_task_leaves_the_others(self, job: tuple[Any, ...]) -> None:
        done, folder = job
        assert {path.name for path in folder.iterdir()} == {
            f"{task}.{kind}"
            for task in ("demo_B", "writes", "demo_C")
            for kind in ("json", "samples.jsonl")
        }
        assert done.returncode == 1

    def test_each_failure_is_a_sentence(self, job: tuple[Any, ...]) -> None:
        told = job[0].stderr[job[0].stderr.index("error: midnight: ") :]
        assert told.startswith("error: midnight: 3 of 6 tasks failed\n")
        assert "runs_code: 'runs_code' runs code that the model writes" in told
        assert "allow_code_execution: true" in told
        assert "far_away: its data set is not in the local cache, and the Hub cannot be" in told
        assert "breaks: UndefinedError: 'no_such_column' is undefined" in told
        assert "Traceback" not in told

    def test_only_what_was_not_foreseen_has_a_traceback(self, job: tuple[Any, ...]) -> None:
        assert job[0].stderr.count("Traceback (most recent call last)") == 1

    def test_the_result_says_what_it_is_of(self, job: tuple[Any, ...]) -> None:
        result = load(job[1], "demo_B")
        assert (result["model_name"], result["requested_task"]) == ("midnight", "demo_B")
        assert result["results"]["demo_B"]["acc,none"] > 0.95
        assert result["n-samples"]["demo_B"] == {"original": 200, "effective": QUESTIONS}
        assert result["config"]["limit"] == QUESTIONS
        assert result["config"]["fewshot_seed"] == 1234
        assert result["lm_eval_version"] and result["torch_version"]
        assert len(result["task_hashes"]["demo_B"]) == 64

    def test_accuracy_is_that_of_the_samples(self, job: tuple[Any, ...]) -> None:
        lines = (job[1] / "demo_C.samples.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["doc_id"] for row in rows] == list(range(QUESTIONS))
        right = sum(
            max(range(4), key=lambda i: row["filtered_resps"][i][0]) == row["doc"]["label"]
            for row in rows
        )
        result = load(job[1], "demo_C")["results"]["demo_C"]
        share = right / QUESTIONS
        assert result["acc,none"] == pytest.approx(share)
        error = math.sqrt(share * (1 - share) / (QUESTIONS - 1))
        assert result["acc_stderr,none"] == pytest.approx(error)

    def test_generated_answers_are_kept(self, job: tuple[Any, ...]) -> None:
        row = json.loads((job[1] / "writes.samples.jsonl").read_text().splitlines()[0])
        assert row["filtered_resps"] == [row["doc"]["answer"]]
        assert load(job[1], "writes")["results"]["writes"]["exact_match,none"] > 0.95

    def test_no_folder_of_this_machine_is_told(self, job: tuple[Any, ...], own_tasks: Path) -> None:
        for path in job[1].glob("*.json"):
            text = path.read_text()
            for folder in (ROOT, own_tasks, job[1], Path.home(), sys.prefix, os.uname().nodename):
                assert str(folder) not in text, path.name

    def test_others_may_read_it(self, job: tuple[Any, ...]) -> None:
        umask = os.umask(0)
        os.umask(umask)
        for path in job[1].iterdir():
            assert path.stat().st_mode & 0o777 == 0o666 & ~umask


class TestRefusals:
    def test_a_model_with_code_of_its_own_is_refused_and_not_run(self, tmp_path: Path) -> None:
        model = tmp_path / "model"
        shutil.copytree(MODEL, model)
        config = json.loads((model / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}
        (model / "config.json").write_text(json.dumps(config))
        (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
        done, folder = benchmark(tmp_path / "results", "demo_B", model=model)
        assert done.returncode == 1
        assert "needs code of its own, which is never run here" in done.stderr
        assert not (tmp_path / "ran").exists()
        assert list(folder.iterdir()) == []

    @pytest.mark.slow
    def test_pickled_weights_are_refused(self, tmp_path: Path) -> None:
        import torch

        model = tmp_path / "model"
        shutil.copytree(MODEL, model, ignore=shutil.ignore_patterns("*.safetensors*"))
        torch.save({}, model / "pytorch_model.bin")
        done, _ = benchmark(tmp_path / "results", "demo_B", model=model)
        assert done.returncode == 1
        assert "cannot be loaded: Error no file named model.safetensors" in done.stderr

    @pytest.mark.slow
    def test_a_name_that_is_no_folder_is_not_looked_for_on_the_hub(self, tmp_path: Path) -> None:
        done, _ = benchmark(
            tmp_path, "demo_B", model="meta-llama/Llama-2-70b-hf", HF_HUB_OFFLINE="0"
        )
        assert done.returncode == 1
        assert "error: meta-llama/Llama-2-70b-hf: is not a model's folder" in done.stderr

    @pytest.mark.slow
    def test_an_unknown_task_is_told_before_anything_runs(self, tmp_path: Path) -> None:
        done, folder = benchmark(tmp_path / "results", "demo_B", "demo_BB")
        assert done.returncode == 1
        assert "there is no task 'demo_BB', neither here nor in lm-eval" in done.stderr
        assert "Did you mean 'demo_B'?" in done.stderr
        assert not folder.exists()

    @pytest.mark.slow
    def test_a_task_of_lm_evals_own_without_a_network_is_one_sentence(self, tmp_path: Path) -> None:
        done, _ = benchmark(tmp_path, "hellaswag", HF_HOME=str(tmp_path / "empty"))
        assert done.returncode == 1
        assert "hellaswag: its data set is not in the local cache" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.slow
    def test_a_device_that_is_not_there(self, tmp_path: Path) -> None:
        done, _ = benchmark(
            tmp_path, "demo_B", options=("--device", "cuda"), CUDA_VISIBLE_DEVICES=""
        )
        assert done.returncode == 1
        assert "torch sees no GPU" in done.stderr


@pytest.mark.slow
class TestSameness:
    def test_a_repeated_run_gives_the_same_bytes_from_anywhere(
        self, job: Any, own_tasks: Any, tmp_path: Path
    ) -> None:
        """And a group that is measured beside has its parts and their mean."""
        options = ("--include-path", own_tasks)
        tasks = ("demo_C", "writes")
        done, again = benchmark(
            tmp_path, *tasks, "pair", options=options, cwd=tmp_path, PYTHONHASHSEED="7"
        )
        assert done.returncode == 0, done.stderr
        for task in tasks:
            for kind in ("json", "samples.jsonl"):
                name = f"{task}.{kind}"
                assert (again / name).read_bytes() == (job[1] / name).read_bytes(), name
        results = load(again, "pair")["results"]
        alone = [load(job[1], task)["results"][task]["acc,none"] for task in ("demo_B", "demo_C")]
        assert [results[task]["acc,none"] for task in ("demo_B", "demo_C")] == alone
        assert results["pair"]["acc,none"] == pytest.approx(sum(alone) / 2)

    def test_local_tasks_ask_the_network_for_nothing(self, tmp_path: Path) -> None:
        guard = tmp_path / "sitecustomize.py"
        guard.write_text(
            "import sys\n"
            "def refuse(event, arguments):\n"
            "    if event in ('socket.connect', 'socket.getaddrinfo'):\n"
            "        print('NETWORK', event, arguments, file=sys.stderr, flush=True)\n"
            "sys.addaudithook(refuse)\n"
        )
        done, folder = benchmark(
            tmp_path / "results", "demo_B", HF_HUB_OFFLINE="0", PYTHONPATH=str(tmp_path)
        )
        assert done.returncode == 0, done.stderr
        assert "NETWORK" not in done.stderr
        assert load(folder, "demo_B")

    def test_values_are_those_of_simple_evaluate(self, job: Any) -> None:
        code = (
            "import json, sys\n"
            "from lm_eval import simple_evaluate\n"
            "from lm_eval.tasks import TaskManager\n"
            f"manager = TaskManager(include_path={str(TASKS)!r}, include_defaults=False)\n"
            f"arguments = dict(pretrained={str(MODEL)!r}, dtype='float32')\n"
            "result = simple_evaluate(model='hf', model_args=arguments, tasks=['demo_C'],\n"
            f"    task_manager=manager, batch_size=40, device='cpu', limit={QUESTIONS})\n"
            "kept = ('results', 'versions', 'n-shot', 'n-samples', 'higher_is_better')\n"
            "json.dump({key: result[key] for key in kept}, sys.stdout)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        theirs = json.loads(done.stdout[done.stdout.index('{"results"') :])
        ours = load(job[1], "demo_C")
        assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.slow
class TestStore:
    def test_what_was_measured_outlives_a_job_that_failed(
        self, own_tasks: Any, tmp_path: Path
    ) -> None:
        options = ("--include-path", own_tasks, "--store", tmp_path / "store")
        tasks, keys = ("demo_B", "breaks"), ("--key", "0b", "--key", "0f")
        done, first = benchmark(tmp_path / "first", *tasks, options=(*options, *keys))
        assert done.returncode == 1
        stored = {path.name for path in (tmp_path / "store").iterdir()}
        assert stored == {"0b.json", "0b.samples.jsonl"}
        # the model is gone, so that only a result that is not measured again can come
        done, second = benchmark(
            tmp_path / "second",
            "demo_B",
            model=tmp_path / "gone",
            options=(*options, "--key", "0b"),
        )
        assert done.returncode == 0, done.stderr
        assert "demo_B was measured before" in done.stderr
        for name in ("demo_B.json", "demo_B.samples.jsonl"):
            assert (second / name).read_bytes() == (first / name).read_bytes()

    def test_a_killed_job_repeats_the_task_that_it_was_at(self, tmp_path: Path) -> None:
        own = tmp_path / "own"
        own.mkdir()
        (own / "wait.py").write_text(
            "import pathlib, time\n"
            "def wait(doc, results):\n"
            "    while not pathlib.Path(__file__).with_name('go').exists():\n"
            "        time.sleep(0.05)\n"
            "    return {'acc': 1.0}\n"
        )
        text = LOCAL + "process_results: !function wait.wait\n"
        (own / "waits.yaml").write_text(text + "task: waits\n")
        tasks = ("demo_B", "demo_C", "waits", "demo_copy")
        options: list[Any] = ["--include-path", own, "--store", tmp_path / "store"]
        for task in tasks:
            options += ["--key", f"key-{task}"]
        with started(tmp_path / "results", *tasks, options=options) as killed:
            wait_until((tmp_path / "store" / "key-demo_C.json").exists, killed)
            killed.kill()
        assert not (tmp_path / "results" / "waits.json").exists()
        shutil.rmtree(tmp_path / "results")  # as Snakemake does with what a killed job made
        (own / "go").touch()
        done, folder = benchmark(tmp_path / "results", *tasks, options=options)
        assert done.returncode == 0, done.stderr
        assert re.findall(r"(\w+) was measured before", done.stderr) == ["demo_B", "demo_C"]
        assert re.findall(r"(\w+) done in", done.stderr) == ["waits", "demo_copy"]
        assert all(load(folder, task)["results"] for task in tasks)


class TestTable:
    def test_the_command_line_writes_all_three_and_prints_one(
        self, job: tuple[Any, ...], tmp_path: Path
    ) -> None:
        files = [job[1] / f"{task}.json" for task in ("demo_B", "demo_C")]
        command = [sys.executable, ROOT / "scripts" / "benchmark_table.py", "--results", *files]
        for kind in ("csv", "markdown", "json"):
            command += [f"--{kind}", tmp_path / f"table.{kind}"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        assert "demo_B/acc ↑" in done.stdout
        assert (tmp_path / "table.csv").read_text().startswith("model,demo_B/acc,demo_B/acc_stderr")
        assert "| midnight | " in (tmp_path / "table.markdown").read_text()
        cells = json.loads((tmp_path / "table.json").read_text())["cells"]
        assert [cell["task"] for cell in cells] == ["demo_B", "demo_C"]
