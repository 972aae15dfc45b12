"""What the configuration says of benchmarks: models and tasks by name, and options of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardmerge.base.errors import UserError

_WHERE = "configuration: benchmark"
#: What is measured of models beside tasks; results have these names.
PROBES = ("perplexity", "kl", "needle")


def by_name(benchmark: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part ``benchmark`` with names alone as models and tasks.

    Args:
        benchmark: As the schema has it, with defaults.

    Returns:
        The same, with what entries say besides their names in ``model_options`` and
        ``task_options``, by name. Probes that are asked for stand among the tasks, at the end.

    Raises:
        UserError: If something is named twice, or options do not go together.
    """
    models, tasks = _named(benchmark, "models", "model"), _named(benchmark, "tasks", "task")
    names = {"models": list(models), "tasks": [*tasks, *_probes(benchmark["probes"], tasks)]}
    found = dict(benchmark) | names | {"model_options": models, "task_options": tasks}
    for where, options in _all_options(found):
        _check_limit(options, where)
    for where, options in _of_models(found):
        _check_backend(options, where)
        _check_logits(found["tasks"], options, where)
        for own in ({}, *tasks.values()):
            _check_turns(laid_over(options, own), where)
    return found


def laid_over(options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with others in their place; tables among them key by key."""
    found = dict(options)
    for key, value in more.items():
        below = found.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        found[key] = {**below, **value} if both else value
    return found


def _named(benchmark: Mapping[str, Any], key: str, word: str) -> dict[str, dict[str, Any]]:
    """Return the options of each entry of a list by its name."""
    found: dict[str, dict[str, Any]] = {}
    for entry in benchmark[key]:
        options = {word: entry} if isinstance(entry, str) else dict(entry)
        name = options.pop(word)
        if options | found.get(name, {}) and name in found:
            raise UserError(f"names {name!r} twice", f"{_WHERE}.{key}", "Leave one of them out.")
        found[name] = options
    return found


def lm_eval_tasks(benchmark: Mapping[str, Any]) -> list[str]:
    """Return the tasks that lm-eval runs: all but probes.

    Args:
        benchmark: From ``by_name``.
    """
    probes = benchmark["probes"]["measure"] if benchmark["probes"]["text"] else ()
    return [task for task in benchmark["tasks"] if task not in probes]


def whole_of(benchmark: Mapping[str, Any], task: str) -> str:
    """Return the probe that measures a part of it, such as ``kl`` of ``kl_SOURCE``; else the task.

    Args:
        benchmark: From ``by_name``.
        task: Name of a task, a probe, or a part of one.
    """
    if not benchmark["probes"]["text"] or task in benchmark["task_options"]:
        return task
    probes = (p for p in benchmark["probes"]["measure"] if task.startswith(f"{p}_"))
    return next(probes, task)


def named_references(benchmark: Mapping[str, Any]) -> list[str]:
    """Return the models that others' predictions are compared with, as they are named.

    Args:
        benchmark: From ``by_name``, or the part of it that plans are made with.
    """
    probes = benchmark.get("probes")
    compared = probes and probes["text"] and "kl" in probes["measure"]
    return list(probes["against"]) if compared else []


def _probes(probes: Mapping[str, Any], tasks: Mapping[str, Any]) -> list[str]:
    """Return the probes that are asked for, in their own order."""
    if not probes["text"]:
        return []
    where = f"{_WHERE}.probes"
    asked = [probe for probe in PROBES if probe in probes["measure"]]
    if both := next((probe for probe in asked if probe in tasks), None):
        hint = "Leave it out there, or give the task another name."
        raise UserError(f"{both!r} is a probe and a task", f"{_WHERE}.tasks", hint)
    for key in ("needle", "question"):
        if "{secret}" not in probes[key]:
            hint = "Write `{secret}` in it."
            raise UserError("does not say where the secret stands", f"{where}.{key}", hint)
    if len(set(probes["symbols"])) < 2:
        raise UserError("has fewer than two symbols", f"{where}.symbols")
    return asked


def _check_logits(tasks: list[str], options: Mapping[str, Any], where: str) -> None:
    probes = options["probes"]["text"] and [task for task in tasks if task in PROBES]
    if probes and options["backend"] != "hf":
        raise UserError(
            f"`probes` need `backend: hf`, as {options['backend']} does not tell all probabilities",
            where,
            "Leave out `probes.text`, or write `backend: hf`.",
        )


def _all_options(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield _WHERE, benchmark
    for key in ("models", "tasks"):
        for name, options in benchmark[f"{key[:-1]}_options"].items():
            yield f"{_WHERE}.{key}: {name}", options


def _of_models(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield _WHERE, benchmark
    for name, options in benchmark["model_options"].items():
        yield f"{_WHERE}.models: {name}", laid_over(benchmark, options)


def _check_limit(options: dict[str, Any], where: str) -> None:
    """Make a number of questions a whole one: 200 and 200.0 are one limit."""
    limit = options.get("limit")
    if limit is None or limit < 1:
        return
    if limit != int(limit):
        raise UserError(
            f"{limit} is neither a number of questions nor a share of them",
            f"{where}.limit",
            "Write a whole number, or a share below 1.",
        )
    options["limit"] = int(limit)


def _check_backend(options: Mapping[str, Any], where: str) -> None:
    if options["backend"] == "vllm" and options["device"] != "cuda":
        raise UserError(
            f"`backend: vllm` needs a GPU, and chooses it itself; `device` is {options['device']}",
            where,
            "Write `device: cuda` beside it, or leave it out.",
        )


def _check_turns(options: Mapping[str, Any], where: str) -> None:
    if options["fewshot_as_multiturn"] and not options["apply_chat_template"]:
        raise UserError(
            "`fewshot_as_multiturn: true` needs a chat template",
            where,
            "Write `apply_chat_template: true` beside it.",
        )
