"""Run lm-eval tasks on one model; each task's result appears as soon as it is there."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.benchmark import harness, network
from shardmerge.benchmark.job import BenchmarkJob, run_job
from shardmerge.benchmark.loading import Beside
from shardmerge.benchmark.options import EvalOptions, parse_options
from shardmerge.benchmark.probe_options import parse_probes
from shardmerge.benchmark.probes import Probe, probes_of
from shardmerge.benchmark.task_names import needs_hub
from shardmerge.export.tools import LlamaCpp
from shardmerge.recipe.benchmark_entries import PROBES
from shardmerge.run.cli import claim, run, say
from shardmerge.run.inputlists import parse_args


def main() -> None:
    """Read the command line, run the tasks, tell which failed."""
    args = _arguments()
    stored = {t: args.store / f"{k}.json" for t, k in zip(args.task, args.key, strict=False)}
    options = _options(args)
    job = BenchmarkJob(
        args.model,
        args.name,
        options,
        dict(zip(args.task, args.output, strict=True)),
        stored,
        tuple(args.include_path),
        beside=Beside(args.tokenizer, args.adapter, _server(args, options)),
        threads=args.threads,
    )
    job = replace(job, probes=_probes(args, job.options))
    tasks = [task for task in args.task if task not in job.probes]
    if needs_hub(tasks, args.include_path):
        network.use_cache_where_offline(say)
    harness.prepare(args.threads, code=any(o.allow_code_execution for o in job.options.values()))
    manager = harness.find_tasks(tasks, job.folders, job.common.model_args)
    claim(*args.output)
    if failures := run_job(job, manager, say):
        reasons = "".join(f"\n  {task}: {reason}" for task, reason in failures.items())
        raise UserError(f"{len(failures)} of {len(args.task)} tasks failed{reasons}", args.name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a transformers model, or a GGUF file's",
    )
    add("--tokenizer", type=Path, metavar="FOLDER", help="of the tokenizer, if not the model's")
    add("--adapter", type=Path, metavar="FOLDER", help="of a LoRA adapter that is put on it")
    add("--llama-cpp", type=Path, metavar="FOLDER", help="of llama.cpp, if not PATH (llama_cpp)")
    add("--name", required=True, help="what the model is called in results")
    add("--task", nargs="+", action="extend", required=True, help="tasks, groups or tags")
    add("--output", nargs="+", action="extend", type=Path, required=True, help="a JSON for each")
    add("--include-path", action="append", type=Path, default=[], help="folder of own task files")
    add("--limit", help="questions of each task, or their share if below 1")
    add("--num-fewshot", help="examples in the prompt, if not each task's own number")
    add("--batch-size", help="a number, or auto (16)")
    add("--device", help="cpu (default), cuda or cuda:N")
    add("--dtype", help="to compute in (float32); auto: the model's")
    add("--options", nargs="+", action="extend", default=[], metavar="JSON",
        help="further options, as below `benchmark` of the configuration; for each task or for all",
    )  # fmt: skip
    add("--probes", metavar="JSON", help="as below `benchmark.probes`; each is then a --task too")
    add("--logits", nargs="+", action="extend", default=[], type=Path,
        help="files of keep_logits.py, of the models to compare with",
    )  # fmt: skip
    add("--threads", type=int, default=1, help="CPU threads (default 1)")
    add("--store", type=Path, help="folder in which results outlive a job that fails later")
    add("--key", nargs="+", action="extend", default=[], help="what results are stored under")
    args = parse_args(parser)
    if len(args.task) != len(args.output) or (args.store and len(args.task) != len(args.key)):
        parser.error("give one --output, and with --store one --key, for each --task")
    if len(args.options) not in (0, 1, len(args.task)):
        parser.error("give one --options, or one for each --task")
    if not args.store:
        args.key = []
    return args


def _server(args: argparse.Namespace, options: Mapping[str, EvalOptions]) -> str | None:
    """Return the path of llama.cpp's server if a task wants it."""
    if not any(one.backend == "llama_cpp" for one in options.values()):
        return None
    return LlamaCpp(args.llama_cpp).program("llama-server")


def _probes(args: argparse.Namespace, options: Mapping[str, EvalOptions]) -> dict[str, Probe]:
    if not args.probes:
        return {}
    asked = parse_probes(args.probes)
    names = [task for task in args.task if task in PROBES]
    return probes_of(names, args.name, options, asked, args.logits)


def _options(args: argparse.Namespace) -> dict[str, EvalOptions]:
    """Return each task's options: those of the command line, and over them its own."""
    keys = ("limit", "num_fewshot", "batch_size", "device", "dtype")
    given = {key: value for key in keys if (value := getattr(args, key)) is not None}
    texts = args.options or ["{}"]
    texts = texts * len(args.task) if len(texts) == 1 else texts
    return {t: parse_options(o, given) for t, o in zip(args.task, texts, strict=True)}


if __name__ == "__main__":
    run(main)
