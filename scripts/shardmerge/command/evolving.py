"""Documents of mergekit-evolve as configurations of a search: what is measured, how, and when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import read_text, write_text
from shardmerge.plan.files import CACHE
from shardmerge.recipe.nodes import Node
from shardmerge.sweep.opened import genome_in

#: What mergekit-evolve does where nothing is said.
_TRIALS, _METRIC, _DTYPE = 100, "acc,none", "bfloat16"
#: Trials of a generation.
_PARALLEL = 8
_KEYS = (
    *("genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init"),
    *("apply_chat_template", "fewshot_as_multiturn"),
)


def is_genome(file: str) -> bool:
    """Return whether a file is a document of mergekit-evolve.

    Raises:
        UserError: If it cannot be read.
    """
    return genome_in(read_text(file), file) is not None


def keep_configuration(file: str) -> str:
    """Return the path of the configuration that a document of mergekit-evolve means, written.

    Raises:
        UserError: If it means none.
    """
    import yaml

    path = CACHE / "genomes" / f"{Path(file).stem}.yaml"
    write_text(path, yaml.safe_dump(configuration_of(file), sort_keys=False))
    return str(path)


def configuration_of(file: str) -> dict[str, Any]:
    """Return the configuration that a document of mergekit-evolve means.

    Args:
        file: The document's.

    Raises:
        UserError: If it means none.
    """
    document = genome_in(read_text(file), file)
    if document is None:
        raise UserError("is no document of mergekit-evolve", file)
    given = {
        key: node
        for key, node in document.mapping("the document", _KEYS).items()
        if node.value is not None
    }
    if "tasks" not in given:
        raise UserError("names no `tasks`", file, "Write `tasks: [NAME]`.")
    objectives = dict(map(_objective, given["tasks"].sequence("tasks")))
    if not objectives:
        raise given["tasks"].error("has no task")
    if list(objectives.values()) == [1]:
        objectives = dict.fromkeys(objectives, "maximize")
    benchmark: dict[str, Any] = {
        "models": [],
        "tasks": [],
        "dtype": _DTYPE,
        "apply_chat_template": _truth(given, "apply_chat_template"),
    }
    if not _truth(given, "fewshot_as_multiturn"):  # else it follows the template
        benchmark["fewshot_as_multiturn"] = False
    benchmark |= {key: given[key].value for key in ("limit", "num_fewshot") if key in given}
    search = {"recipe": file, "sampler": "cmaes", "trials": _TRIALS, "parallel": _PARALLEL}
    return {"sweep": search | {"objectives": objectives}, "benchmark": benchmark}


def _objective(task: Node) -> tuple[str, float]:
    """Return the label of a task's metric, and its weight."""
    if isinstance(task.value, str):
        return _label(task.text("a task"), _METRIC), 1
    given = task.mapping("a task", ("name", "weight", "metric"))
    if "name" not in given:
        raise task.error("a task has no name")
    weight = given["weight"].value if "weight" in given else 1
    if type(weight) not in (int, float):
        raise given["weight"].error(f"weight is a number, not {given['weight'].kind}")
    metric = given["metric"].text("metric") if "metric" in given else _METRIC
    return _label(given["name"].text("a task's name"), metric), weight


def _label(task: str, metric: str) -> str:
    return f"{task}/{metric.removesuffix(',none')}"


def _truth(given: Mapping[str, Node], key: str) -> bool:
    if key not in given:
        return True
    if not isinstance(given[key].value, bool):
        raise given[key].error(f"{key} is true or false, not {given[key].kind}")
    return given[key].value
