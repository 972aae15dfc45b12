"""Bring the data sets of lm-eval's tasks to this machine's cache, and note their commits."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.files import write_json
from shardmerge.benchmark import dataset_revisions, harness
from shardmerge.benchmark.options import parse_options
from shardmerge.benchmark.task_names import lm_eval_version
from shardmerge.run.cli import claim, run, show
from shardmerge.run.inputlists import parse_args


def main() -> None:
    """Read the command line, load each task's data, write and print what was loaded."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--task", nargs="+", action="extend", default=[], help="tasks, groups or tags")
    add("--options", nargs="+", action="extend", default=[], help="JSON, for each task or for all")
    add("--include-path", action="append", type=Path, default=[], help="folder of own task files")
    add("--output", type=Path, required=True, help="JSON: data sets and their commits")
    args = parse_args(parser)
    if not args.task:
        raise UserError(
            "there is nothing to fetch: no task is named", "configuration: benchmark.tasks"
        )
    options = [parse_options(text, {}) for text in args.options or ["{}"]]
    options = options * len(args.task) if len(options) == 1 else options
    harness.prepare(threads=1, code=any(o.allow_code_execution for o in options))
    manager = harness.find_tasks(args.task, args.include_path)
    claim(args.output)
    found, failures = {}, {}
    for task, chosen in zip(args.task, options, strict=True):
        try:
            loaded = harness.load_task(manager, task, chosen)
            harness.questions_of(loaded, chosen)  # what is made of the data is kept too
            found[task] = dataset_revisions.revisions_of(loaded)
        except Exception as error:
            failures[task] = harness.failure_of(error)
    made = dataset_revisions.datasets_json(found, lm_eval_version() or "")
    write_json(args.output, made)
    rows = [f"{d['path']} at {d['revision']}: {', '.join(d['tasks'])}" for d in made["datasets"]]
    show("".join(f"{row}\n" for row in rows or ["no task reads a data set of the Hub"]))
    if failures:
        reasons = "".join(f"\n  {task}: {reason}" for task, reason in failures.items())
        raise UserError(f"the data of {len(failures)} of {len(args.task)} tasks failed{reasons}")


if __name__ == "__main__":
    run(main)
