"""Whole builds by every merge method, side by side with mergekit: a table of seconds and memory."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shardmerge.base.markdown import table
from shardmerge.methods.registry import MergeMethod, in_mergekit, method, methods
from shardmerge.sources.checkpoint_files import INDEX
from tools.bench.builds import MODELS, ROOT, Contestant, Figures, measure, warm
from tools.bench.models import SIZES, make_model

#: What is not a parameter's first example.
_VALUES = {"weight": 0.5, "density": 0.5, "epsilon": 0.1, "t": 0.4, "select_topk": 0.5}
_OURS, _MERGEKIT = "shardmerge", "mergekit-yaml"


def recipe(declared: MergeMethod) -> dict[str, Any]:
    """Return a recipe of three models, or of two where a method takes no more."""
    inputs, names = declared.inputs, list(MODELS)
    base = inputs.base == "required"
    most = inputs.maximum or 3
    if inputs.maximum_models is not None:
        most = min(most, inputs.maximum_models + base)
    names = names[:most]
    found: dict[str, Any] = {"merge_method": declared.name, "dtype": "float16"}
    if base:
        found["base_model"] = names.pop(0)
    shared, each = {}, {}
    for parameter in declared.parameters:
        if parameter.name == "seed" or parameter.unused or parameter.idle:
            continue
        value = _VALUES.get(parameter.name, parameter.samples[0])
        if value is not None:
            (shared if parameter.scope == "shared" else each)[parameter.name] = value
    found["models"] = [{"model": name, **({"parameters": each} if each else {})} for name in names]
    return found | ({"parameters": shared} if shared else {})


def prepare(folder: Path, size: str, name: str) -> dict[str, Contestant]:
    """Write the models and a method's recipe, if they are not there; return what is compared."""
    config = json.loads((ROOT / "resources/demo/miqu-tiny/config.json").read_text())
    for seed, model in enumerate(MODELS):
        if not (folder / model / INDEX).exists():
            make_model(folder / model, SIZES[size], config, seed)
    text = yaml.safe_dump(recipe(method(name)), sort_keys=False)
    (folder / f"{name}.yaml").write_text(text)
    settings = {"recipes": [f"{name}.yaml"], "benchmark": {"tasks": []}}
    settings["sources"] = {model: model for model in MODELS}
    (folder / f"{name}.json").write_text(json.dumps(settings))
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "models"]
    snakemake += ["--cores", "2", "--quiet", "all", "--configfile", f"{name}.json"]
    left = ("results", ".snakemake", "logs", "benchmarks", ".shardmerge", f"{name}.lock.json")
    found = {_OURS: Contestant(snakemake, "results", left)}
    tool = Path(sys.executable).with_name(_MERGEKIT)
    if tool.exists() and in_mergekit(name):
        command = [str(tool), f"{name}.yaml", "merged", "--quiet", "--no-copy-tokenizer"]
        command.append("--no-write-model-card")
        found[_MERGEKIT] = Contestant([*command, "--async-write"], "merged", ("merged",))
    return found


def compare(
    folder: Path, size: str, names: Sequence[str], pairs: int, say: Callable[[str], None]
) -> dict[str, dict[str, list[Figures]]]:
    """Build with each method, ours and mergekit's in turn, so many times; return the figures."""
    rows: dict[str, dict[str, list[Figures]]] = {}
    for name in names or [declared.name for declared in methods()]:
        contestants = prepare(folder, size, name)
        rows[name] = {contestant: [] for contestant in contestants}
        for _ in range(pairs):
            for label, contestant in contestants.items():
                warm(folder / model for model in MODELS)
                rows[name][label].append(measure(folder, contestant))
        say(" | ".join(_row(name, rows[name])))
    return rows


def methods_table(rows: Mapping[str, Mapping[str, Sequence[Figures]]]) -> str:
    """Return a table of medians, in seconds and megabytes."""
    head = ["Method", "Whole build, s", "Merge jobs, s", "A job's peak, MB"]
    head += [f"{_MERGEKIT}, s", "Its peak, MB", "Times as fast"]
    return table(head, [_row(name, found) for name, found in rows.items()])


def _row(name: str, found: Mapping[str, Sequence[Figures]]) -> list[str]:
    def median(label: str, key: str) -> float:
        return statistics.median(figures[key] for figures in found[label])

    ours = median(_OURS, "seconds")
    row = [f"`{name}`", f"{ours:.1f}", f"{median(_OURS, 'merge'):.1f}"]
    row.append(f"{median(_OURS, 'job_peak_mb'):,.0f}")
    if _MERGEKIT not in found:
        return [*row, "", "", ""]
    theirs = median(_MERGEKIT, "seconds")
    return [*row, f"{theirs:.1f}", f"{median(_MERGEKIT, 'peak_mb'):,.0f}", f"{theirs / ours:.1f}"]
