"""Benchmarks of one model through lm-eval: load it once, run tasks, keep what is comparable.

What is kept has the shape of lm-eval's own result files, less what differs from run to run or
from machine to machine (times, paths, the environment), so that a repeated run on a CPU gives
the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import random
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import atomic_path, write_json
from shardmerge.benchmark.conditions import BOOTSTRAP_ITERATIONS, conditions, versions
from shardmerge.benchmark.dataset_revisions import revisions_of
from shardmerge.benchmark.loading import chat_template
from shardmerge.benchmark.options import EvalOptions
from shardmerge.benchmark.plain import Scrubber, plain

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

_KEPT = ("results", "groups", "group_subtasks", "configs", "versions")
_KEPT += ("n-shot", "higher_is_better", "n-samples")
#: Errors, of several libraries, that say that a server was not reached.
_NO_NETWORK = {
    *("ConnectionError", "ConnectError", "ConnectTimeout", "OfflineModeIsEnabled"),
    *("LocalEntryNotFoundError", "gaierror", "ReadTimeout", "ProxyError"),
}


@dataclass(frozen=True)
class Evaluation:
    """A task's result, and one row per question and filter."""

    result: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]] = field(repr=False)


def prepare(threads: int, *, code: bool = False) -> None:
    """Set the process up for lm-eval; call it before torch is imported.

    Args:
        threads: CPU threads to compute with.
        code: Whether tasks may run what the model writes.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's bootstrap would take all cores
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # a meter of questions says how far a job is
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
    if code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the metric that runs it asks for this

    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def find_tasks(
    names: Sequence[str], include_path: Sequence[Path], arguments: Mapping[str, Any] | None = None
) -> TaskManager:
    """Return lm-eval's index of tasks; its own are read only where a name is not a local task.

    Args:
        names: Tasks, groups or tags.
        include_path: Folders of task files.
        arguments: Of the model, which some tasks make their data for.

    Raises:
        UserError: If a folder is missing or a task unknown.
    """
    from lm_eval.tasks import TaskManager

    for folder in include_path:
        if not folder.is_dir():
            raise UserError("is not a folder of tasks", str(folder))
    told = {"include_path": list(include_path), "metadata": dict(arguments or {})}
    manager = TaskManager(include_defaults=False, **told)
    local = {*manager.all_subtasks, *manager.all_tags}
    if not local.issuperset(names):  # a local group may hold tasks of lm-eval's
        manager = TaskManager(**told)
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(
                f"there is no task {name!r}, neither here nor in lm-eval",
                hint=did_you_mean(name, manager.all_tasks),
            )
    return manager


def load_task(manager: TaskManager, name: str, options: EvalOptions) -> Mapping[str, Any]:
    """Return a task, group or tag with its data, ready to run.

    Args:
        manager: From ``find_tasks``.
        name: The task.
        options: Examples in the prompt (a task that says 0 itself keeps it, as in lm-eval), seed
            of their choice, settings of generation, and whether code may run.

    Raises:
        Exception: Whatever the task's data raises; ``reason_of`` makes a sentence of it.
    """
    entry = manager.task_index[name].cfg or {}  # its own code, which loading runs, may need this
    _check_code(name, bool(entry.get("unsafe_code")), options)
    loaded = manager.load([name])
    for label, task in loaded["tasks"].items():
        _check_code(label, getattr(task, "UNSAFE_CODE", False), options)
        if options.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(options.gen_kwargs), update=True)
        own = task.get_config("num_fewshot")
        if options.num_fewshot is not None and own != 0:
            task.set_config(key="num_fewshot", value=options.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=options.seed[3])
    return loaded


def _check_code(name: str, runs: bool, options: EvalOptions) -> None:
    if runs and not options.allow_code_execution:
        raise UserError(
            f"{name!r} runs code that the model writes",
            hint="If it may, write `allow_code_execution: true` under `benchmark`.",
        )


def questions_of(task: Mapping[str, Any], options: EvalOptions) -> int:
    """Return how many questions a loaded task, or all parts of a group, will ask."""
    return sum(len(options.asked(len(t.eval_docs))) for t in task["tasks"].values())


def evaluate(
    model: LM,
    name: str,
    requested: str,
    task: Mapping[str, Any],
    options: EvalOptions,
    folders: Sequence[Path] = (),
) -> Evaluation:
    """Run one loaded task on a loaded model.

    Args:
        model: From ``loading.language_model``.
        name: What the model is called in the result.
        requested: The task's name as asked for.
        task: From ``load_task``.
        options: As the model and the task were loaded with.
        folders: Of task files besides lm-eval's own.
    """
    import lm_eval
    import numpy
    from lm_eval.evaluator import evaluate as run
    from lm_eval.utils import set_torch_seed

    parts = None
    if options.half:
        tasks = task["tasks"].items()
        parts = {key: [*options.asked(len(one.eval_docs))] for key, one in tasks}
    random.seed(options.seed[0])
    numpy.random.seed(options.seed[1])
    set_torch_seed(options.seed[2])
    with chat_template(model, options.apply_chat_template):
        raw = run(
            lm=model,
            task_dict=task,
            limit=None if parts else options.limit,
            samples=parts,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            log_samples=True,
            system_instruction=options.system_instruction,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.fewshot_as_multiturn,
            confirm_run_unsafe_code=options.allow_code_execution,
        )
    samples = [
        {"task": key, **row}
        for key, rows in raw["samples"].items()
        for row in sorted(rows, key=lambda row: (row["doc_id"], row["filter"]))
    ]
    result = {key: raw[key] for key in _KEPT if raw.get(key)}
    result |= {
        "model_name": name,
        "requested_task": requested,
        "task_hashes": {key: _task_hash(rows) for key, rows in raw["samples"].items()},
        **versions(options.backend),
        "config": conditions(model, options),
    }
    if revisions := revisions_of(task):
        result["dataset_revisions"] = revisions
    scrub = Scrubber((*folders, Path(lm_eval.__file__).parent))
    return Evaluation(scrub(plain(result)), plain(samples))


def save(evaluation: Evaluation, output: Path) -> None:
    """Write ``TASK.samples.jsonl``, then ``TASK.json`` beside it, each whole or not at all."""
    with atomic_path(output.with_suffix(".samples.jsonl")) as part, open(part, "w") as file:
        for row in evaluation.samples:
            file.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")
    write_json(output, evaluation.result)


def copy(result: Path, target: Path) -> bool:
    """Copy a result and its samples, the result last; return whether there was one."""
    if not result.exists():
        return False
    for source, name in (
        (result.with_suffix(".samples.jsonl"), target.with_suffix(".samples.jsonl")),
        (result, target),
    ):
        with atomic_path(name) as part:
            part.write_bytes(source.read_bytes())
    return True


def reason_of(error: Exception) -> str | None:
    """Return one sentence on why a task failed, or None for a failure that is not foreseen."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    if isinstance(error, UserError):
        return str(error)
    if "GatedRepoError" in kinds:
        return "its data set is gated: accept its terms on the Hub, and give a token in HF_TOKEN"
    if kinds & _NO_NETWORK:
        return (
            "its data set is not in the local cache, and the Hub cannot be reached; "
            "run `snakemake prefetch` where there is a network, with the same HF_HOME"
        )
    return None


def failure_of(error: Exception) -> str:
    """Return why a task failed in a line, after the traceback of what was not foreseen."""
    if reason := reason_of(error):
        return reason
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def _task_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return lm-eval's hash of a task: what was asked, in which words, with which answers."""
    from lm_eval.utils import hash_string

    keys = ("doc_hash", "prompt_hash", "target_hash")
    return hash_string("".join(row[key] for row in rows for key in keys))
