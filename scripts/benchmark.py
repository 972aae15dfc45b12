"""Run lm-eval tasks on one model; each task's result appears as soon as it is there."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.benchmark import harness
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    """Read the command line, load what is needed once, run the tasks, tell which failed."""
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
    add("--name", required=True, help="what the model is called in results")
    add("--task", nargs="+", action="extend", required=True, help="tasks, groups or tags")
    add("--output", nargs="+", action="extend", type=Path, required=True, help="a JSON for each")
    add("--include-path", action="append", type=Path, default=[], help="folder of own task files")
    add("--limit", type=_limit, help="questions of each task, or their share if below 1")
    add("--num-fewshot", type=int, help="examples in the prompt, if not each task's own number")
    add("--batch-size", type=_batch_size, default=16, help="a number, or auto (default 16)")
    add("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    add("--dtype", default="float32", help="to compute in (default float32); auto: the model's")
    add("--parallelize", action="store_true", help="spread the model over all visible GPUs")
    add("--threads", type=int, default=1, help="CPU threads (default 1)")
    add("--store", type=Path, help="folder in which results outlive a job that fails later")
    add("--key", nargs="+", action="extend", default=[], help="what results are stored under")
    args = parse_args(parser)
    if len(args.task) != len(args.output) or (args.store and len(args.task) != len(args.key)):
        parser.error("give one --output, and with --store one --key, for each --task")
    stored = {}
    if args.store:
        stored = {t: args.store / f"{k}.json" for t, k in zip(args.task, args.key, strict=True)}

    options = {name: getattr(args, name) for name in harness.EvalSettings.__dataclass_fields__}
    settings = harness.EvalSettings(**options | {"include_path": tuple(args.include_path)})
    harness.prepare(args.threads)
    manager = harness.find_tasks(args.task, settings.include_path)
    claim(*args.output)
    failures: dict[str, str] = {}
    loaded = {}
    for task, output in zip(args.task, args.output, strict=True):
        if task in stored and harness.copy(stored[task], output):
            print(f"{args.name}: {task} was measured before", file=sys.stderr)
    todo = [t for t in args.task if t not in stored or not stored[t].exists()]
    for task in todo:  # before the model, as that may take an hour to load
        try:
            loaded[task] = harness.load_task(manager, task, settings.num_fewshot)
        except Exception as error:
            failures[task] = _failure(error)
    with ExitStack() as stack:
        folder = None
        if settings.parallelize:
            parent = args.output[0].parent
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent)))
        load = harness.language_model
        model = load(args.model, settings, folder, args.tokenizer) if loaded else None
        for task, output in zip(args.task, args.output, strict=True):
            if task in loaded:
                start = time.monotonic()
                try:
                    done = harness.evaluate(model, args.name, task, loaded[task], settings)
                    harness.save(done, output)
                    if task in stored:
                        harness.copy(output, stored[task])
                except Exception as error:
                    failures[task] = _failure(error)
                else:
                    seconds = time.monotonic() - start
                    print(f"{args.name}: {task} done in {seconds:.1f} s", file=sys.stderr)
    if failures:
        reasons = "".join(f"\n  {task}: {reason}" for task, reason in failures.items())
        raise UserError(f"{len(failures)} of {len(args.task)} tasks failed{reasons}", args.name)


def _failure(error: Exception) -> str:
    if reason := harness.reason_of(error):
        return reason
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def _limit(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("a number above 0")
    return int(value) if value >= 1 else value


def _batch_size(text: str) -> int | str:
    if text.startswith("auto"):
        return text
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("a number above 0, or auto")
    return value


if __name__ == "__main__":
    run(main)
