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
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import atomic_path, write_json
from shardmerge.benchmark.plain import Scrubber, plain

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

#: lm-eval's own default seeds.
SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}
#: Samples of a bootstrapped standard error; accuracies have a closed form and need none.
BOOTSTRAP_ITERATIONS = 1000

_KEPT = ("results", "groups", "group_subtasks", "configs", "versions")
_KEPT += ("n-shot", "higher_is_better", "n-samples")
#: Errors, of several libraries, that say that a server was not reached.
_NO_NETWORK = {
    *("ConnectionError", "ConnectError", "ConnectTimeout", "OfflineModeIsEnabled"),
    *("LocalEntryNotFoundError", "gaierror", "ReadTimeout", "ProxyError"),
}


@dataclass(frozen=True)
class EvalSettings:
    """How tasks are run.

    Args:
        include_path: Folders of task files besides lm-eval's own.
        limit: Questions of each task (or their share, if below 1), or None for all.
        num_fewshot: Examples in the prompt, or None for each task's own number.
        batch_size: Requests in a batch, or ``auto``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Type that the model computes in, or ``auto`` for its own.
        parallelize: Whether to spread the model over all visible GPUs.
    """

    include_path: tuple[Path, ...] = ()
    limit: float | None = None
    num_fewshot: int | None = None
    batch_size: int | str = 16
    device: str = "cpu"
    dtype: str = "float32"
    parallelize: bool = False


@dataclass(frozen=True)
class Evaluation:
    """A task's result, and one row per question and filter."""

    result: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]] = field(repr=False)


def prepare(threads: int) -> None:
    """Set the process up for lm-eval; call it before torch is imported.

    Args:
        threads: CPU threads to compute with.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's bootstrap would take all cores
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # a log needs a line now and then only

    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def find_tasks(names: Sequence[str], include_path: Sequence[Path]) -> TaskManager:
    """Return lm-eval's index of tasks; its own are read only where a name is not a local task.

    Raises:
        UserError: If a folder is missing or a task unknown.
    """
    from lm_eval.tasks import TaskManager

    for folder in include_path:
        if not folder.is_dir():
            raise UserError("is not a folder of tasks", str(folder))
    manager = TaskManager(include_path=list(include_path), include_defaults=False)
    local = {*manager.all_subtasks, *manager.all_tags}
    if not local.issuperset(names):  # a local group may hold tasks of lm-eval's
        manager = TaskManager(include_path=list(include_path))
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(
                f"there is no task {name!r}, neither here nor in lm-eval",
                hint=did_you_mean(name, manager.all_tasks),
            )
    return manager


def load_task(manager: TaskManager, name: str, num_fewshot: int | None) -> Mapping[str, Any]:
    """Return a task, group or tag with its data, ready to run.

    Args:
        manager: From ``find_tasks``.
        name: The task.
        num_fewshot: Examples in the prompt, or None for the task's own number. A task that
            says 0 itself keeps it, as in lm-eval.

    Raises:
        Exception: Whatever the task's data raises; ``reason_of`` makes a sentence of it.
    """
    loaded = manager.load([name])
    for label, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"{label!r} runs code that the model writes, which is never done here",
                hint="Run it with lm-eval itself, in a sandbox.",
            )
        own = task.get_config("num_fewshot")
        if num_fewshot is not None and own != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEEDS["fewshot_seed"])
    return loaded


def language_model(
    folder: Path,
    settings: EvalSettings,
    offload: Path | None = None,
    tokenizer: Path | None = None,
) -> HFLM:
    """Load a model from safetensors or GGUF; never from pickles, never with code of its own.

    Args:
        folder: The model's folder; without a config.json, that of a GGUF file.
        settings: Device, type and batch size.
        offload: Folder for what fits in no memory, where ``settings.parallelize`` is set.
        tokenizer: Folder of the tokenizer, None for the model's own.

    Raises:
        UserError: If it cannot be loaded, or the device is not there.
    """
    source = _source_arguments(folder)

    import torch
    from lm_eval.models.huggingface import HFLM

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device.startswith("cuda") and (torch.device(settings.device).index or 0) >= seen:
        raise UserError(
            f"the device {settings.device!r} is not there: torch sees {seen or 'no'} GPU",
            hint="Set `benchmark.device` to cpu, or send the job where such a GPU is.",
        )
    arguments = source | ({"offload_folder": str(offload)} if offload else {})
    arguments |= {"tokenizer": str(tokenizer.resolve())} if tokenizer else {}
    try:
        return HFLM(
            pretrained=str(folder.resolve()),
            device=settings.device,
            dtype=settings.dtype,
            batch_size=settings.batch_size,
            parallelize=settings.parallelize,
            trust_remote_code=False,
            **arguments,
        )
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error).strip().split("\n")[0]
        if "trust_remote_code" in str(error):
            text = "it needs code of its own, which is never run here"
        raise UserError(f"cannot be loaded: {text}", str(folder)) from error


def _source_arguments(folder: Path) -> dict[str, Any]:
    """Return what says which files of a folder the weights are read from."""
    if (folder / "config.json").is_file():
        return {"use_safetensors": True}
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if not files:
        raise UserError("is not a model's folder: it has no config.json", str(folder))
    if len(files) > 1:
        raise UserError(
            f"has {len(files)} files, and transformers reads GGUF from a single one",
            str(folder),
            "Raise `exports.gguf.split_size`, or take this export out of `benchmark.models`.",
        )
    return {"gguf_file": files[0]}


def evaluate(
    model: HFLM, name: str, requested: str, task: Mapping[str, Any], settings: EvalSettings
) -> Evaluation:
    """Run one loaded task on a loaded model.

    Args:
        model: From ``language_model``.
        name: What the model is called in the result.
        requested: The task's name as asked for.
        task: From ``load_task``.
        settings: As the model and the task were loaded with.
    """
    import datasets
    import lm_eval
    import numpy
    import torch
    import transformers
    from lm_eval.evaluator import evaluate as run

    random.seed(SEEDS["random_seed"])
    numpy.random.seed(SEEDS["numpy_seed"])
    torch.manual_seed(SEEDS["torch_seed"])
    raw = run(
        lm=model,
        task_dict=task,
        limit=settings.limit,
        bootstrap_iters=BOOTSTRAP_ITERATIONS,
        log_samples=True,
        confirm_run_unsafe_code=False,
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
        "lm_eval_version": lm_eval.__version__,
        "transformers_version": transformers.__version__,
        "torch_version": torch.__version__,
        "datasets_version": datasets.__version__,
        "config": {
            "model": "hf",
            "model_dtype": str(model.model.dtype).removeprefix("torch."),
            "model_num_parameters": model.model.num_parameters(),
            "max_length": model.max_length,
            "dtype": settings.dtype,
            "device": settings.device.partition(":")[0],
            "batch_size": settings.batch_size,
            "limit": settings.limit,
            "num_fewshot": settings.num_fewshot,
            "bootstrap_iters": BOOTSTRAP_ITERATIONS,
            **SEEDS,
        },
    }
    scrub = Scrubber((*settings.include_path, Path(lm_eval.__file__).parent))
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
            "run it once where there is a network, or point HF_HOME to a cache that has it"
        )
    return None


def _task_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return lm-eval's hash of a task: what was asked, in which words, with which answers."""
    from lm_eval.utils import hash_string

    keys = ("doc_hash", "prompt_hash", "target_hash")
    return hash_string("".join(row[key] for row in rows for key in keys))
