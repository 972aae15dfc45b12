"""A benchmark job: what was measured before is taken, the rest is asked of a model loaded once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, write_json
from shardmerge.benchmark import harness, loading
from shardmerge.benchmark.options import EvalOptions
from shardmerge.benchmark.probes import Probe
from shardmerge.benchmark.progress import QuestionMeter

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@dataclass(frozen=True)
class BenchmarkJob:
    """Tasks of one model.

    Args:
        model: The model's folder.
        name: What it is called in results.
        options: How each task is run, by task.
        outputs: A JSON file for each task.
        stored: Where a task's result outlives a job that fails or is killed later.
        folders: Of task files besides lm-eval's own.
        probes: What is no task of lm-eval's, by its name among the outputs.
        beside: What is not in the model's folder.
        threads: CPU threads of a server of llama.cpp.
    """

    model: Path
    name: str
    options: Mapping[str, EvalOptions]
    outputs: Mapping[str, Path]
    stored: Mapping[str, Path]
    folders: tuple[Path, ...] = ()
    probes: Mapping[str, Probe] = field(default_factory=dict)
    beside: loading.Beside = field(default_factory=loading.Beside)
    threads: int = 1

    @property
    def common(self) -> EvalOptions:
        """The options that the model is loaded with.

        Raises:
            UserError: If tasks want it loaded in different ways.
        """
        first, *others = self.options.values()
        if any(other.model_options != first.model_options for other in others):
            raise UserError("tasks want the model loaded in different ways", self.name)
        return first


def run_job(job: BenchmarkJob, manager: TaskManager, say: Callable[[str], None]) -> dict[str, str]:
    """Run a job; each result has its place as soon as it is there.

    Args:
        job: What to do, in a process that ``harness.prepare`` has set up.
        manager: From ``harness.find_tasks``.
        say: Receives lines on how far it is.

    Returns:
        Why tasks failed, by task.

    Raises:
        UserError: If the model cannot be loaded, or has not the chat templates that tasks want.
    """
    todo = [task for task in job.outputs if not _taken(job, task, say)]
    failures: dict[str, str] = {}
    loaded: dict[str, Mapping[str, Any]] = {}
    probes = [task for task in todo if task in job.probes]
    for task in todo:  # before the model, as that may take an hour to load
        if task in probes:
            continue
        with _noting(failures, task):
            loaded[task] = harness.load_task(manager, task, job.options[task])
    if not (loaded or probes):
        return failures
    loading.check_templates(
        job.beside.tokenizer or job.model, (job.options[t].apply_chat_template for t in loaded)
    )
    counts = {task: harness.questions_of(loaded[task], job.options[task]) for task in loaded}
    meter = QuestionMeter(job.name, sum(counts.values()), say)
    with (
        _offload(job) as folder,
        loading.loaded(job.model, job.common, folder, job.beside, job.threads) as model,
    ):
        meter.watch(model)
        for task, data in loaded.items():
            meter.begin(task)
            with _noting(failures, task):
                options = job.options[task]
                done = harness.evaluate(model, job.name, task, data, options, job.folders)
                _keep(job, task, done)
            meter.end(counts[task], failed=task in failures)
        for probe in probes:
            say(f"{job.name}: {probe}")
            with _noting(failures, probe):
                _keep(job, probe, job.probes[probe](model))
    return failures


def _taken(job: BenchmarkJob, task: str, say: Callable[[str], None]) -> bool:
    """Take the result of a task that was measured before; return whether there is one."""
    if task not in job.stored or not harness.copy(job.stored[task], job.outputs[task]):
        return False
    result = load_json(job.outputs[task])
    if "identity" not in result:  # an earlier version told none
        write_json(job.outputs[task], result | {"identity": job.stored[task].stem})
    say(f"{job.name}: {task} was measured before")
    return True


def _keep(job: BenchmarkJob, task: str, done: harness.Evaluation) -> None:
    """Write a result where it outlives the job first, so that no killed job does it again."""
    if task in job.stored:
        # what the result is of: who takes it later can tell whether it is still the right one
        done = replace(done, result={**done.result, "identity": job.stored[task].stem})
    harness.save(done, job.stored.get(task, job.outputs[task]))
    if task in job.stored:
        harness.copy(job.stored[task], job.outputs[task])


@contextmanager
def _noting(failures: dict[str, str], task: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failures[task] = harness.failure_of(error)


@contextmanager
def _offload(job: BenchmarkJob) -> Iterator[Path | None]:
    """Give a folder for what of a model that is spread over GPUs fits in no memory."""
    if job.common.gpus == 1:
        yield None
        return
    parent = next(iter(job.outputs.values())).parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)
