"""Whole builds by every merge method, side by side with mergekit: a table of seconds and memory."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shardmerge.base.markdown import table
from shardmerge.methods.registry import MergeMethod, in_mergekit, method, methods
from shardmerge.report.canvas import FAINT, figure
from shardmerge.sources.checkpoint_files import INDEX
from tools.bench.builds import MODELS, ROOT, Contestant, Figures, measure, warm
from tools.bench.models import SIZES, make_model

#: What is not a parameter's first example.
_VALUES = {"weight": 0.5, "density": 0.5, "epsilon": 0.1, "t": 0.4, "select_topk": 0.5}
#: Contestants.
OURS, OURS_AS_THEIRS = "shardmerge", "shardmerge, mergekit's numerics"
MERGEKIT, START = "mergekit-yaml", "mergekit-yaml --help"
_NUMERICS = {OURS: "float32", OURS_AS_THEIRS: "mergekit-0.1.5"}
#: Seconds of a run before it is measured: of any, and for each GB of a model.
_START, _A_GIGABYTE = 8.0, {OURS: 10.0, OURS_AS_THEIRS: 20.0, MERGEKIT: 60.0}
#: Of each method and contestant its runs.
Measured = dict[str, dict[str, list[Figures]]]


def measurable() -> list[str]:
    """Return the methods that merge models of random weights.

    Others let the models read a text first; these need a tokenizer, and take as long as that.
    """
    return [m.name for m in methods() if not any(p.measuring for p in m.parameters)]


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
    found: dict[str, Contestant] = {}
    for label, numerics in _NUMERICS.items():
        settings = {"recipes": [f"{name}.yaml"], "benchmark": {"tasks": []}, "numerics": numerics}
        settings["sources"] = {model: model for model in MODELS}
        (folder / f"{name}-{numerics}.json").write_text(json.dumps(settings))
        snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "models"]
        snakemake += ["--cores", "2", "--quiet", "all", "--configfile", f"{name}-{numerics}.json"]
        left = ("results", ".snakemake", "logs", "benchmarks", ".shardmerge", f"{name}.lock.json")
        if label == OURS or in_mergekit(name):
            found[label] = Contestant(snakemake, "results", left)
    tool = Path(sys.executable).with_name(MERGEKIT)
    if tool.exists() and in_mergekit(name):
        command = [str(tool), f"{name}.yaml", "merged", "--quiet", "--no-copy-tokenizer"]
        command += ["--no-write-model-card", "--async-write", "--write-threads", "2"]
        found[MERGEKIT] = Contestant([*command, "--num-threads", "2"], "merged", ("merged",))
        found[START] = Contestant([str(tool), "--help"], None, ())
    return found


def compare(
    folder: Path,
    size: str,
    names: Sequence[str],
    runs: int,
    rows: Measured,
    keep: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Build with each method, all contestants in turn; what is measured already is not run again.

    Args:
        folder: Of the models.
        size: A key of ``SIZES``.
        names: Methods; all if there is none.
        runs: How many of each contestant.
        rows: What is measured; gets what is measured now.
        keep: Called after each run, so that a benchmark that was killed can go on.
        say: Takes a line for the user.
    """
    for name in names or measurable():
        found = rows.setdefault(name, {})
        contestants = prepare(folder, size, name)
        for turn in range(runs):
            for label, contestant in contestants.items():
                if len(found.setdefault(label, [])) <= turn:
                    warm(folder / model for model in MODELS)
                    found[label].append(measure(folder, contestant))
                    keep()
        say(" | ".join(_row(name, found)))


def estimate(sizes: Sequence[str], names: Sequence[str], runs: int, rows: Measured) -> float:
    """Return about how many seconds all runs take that are not measured yet.

    A median of the method's own runs counts where there is one, else what most methods take on two
    cores.
    """
    total = 0.0
    for size in sizes:
        for name in names or measurable():
            theirs = (MERGEKIT,) if in_mergekit(name) else ()
            for label in (*(_NUMERICS if theirs else (OURS,)), *theirs):
                found = rows.get(size, {}).get(name, {}).get(label, [])
                guess = _START + gigabytes(size) * _A_GIGABYTE[label]
                each = statistics.median(row["exit"] for row in found) if found else guess
                total += each * max(runs - len(found), 0)
    return total


def gigabytes(size: str) -> float:
    """Return how large a model of that size is."""
    return sum(math.prod(shape) for shape in SIZES[size].shapes.values()) * 2 / 1e9


def methods_table(rows: Mapping[str, Mapping[str, Sequence[Figures]]]) -> str:
    """Return a table of medians, in seconds and megabytes."""
    head = ["Method", "Whole build, s", "Merge jobs, s", "A job's peak, MB"]
    head += ["mergekit's numerics: build, s", "merge jobs, s"]
    head += [f"{MERGEKIT}, s", "less its start, s", "Its peak, MB"]
    head += ["Whole build, times as fast", "Merge jobs, times as fast as it less its start"]
    return table(head, [_row(name, found) for name, found in rows.items()])


def _row(name: str, found: Mapping[str, Sequence[Figures]]) -> list[str]:
    def median(label: str, key: str) -> float:
        return statistics.median(figures[key] for figures in found[label])

    whole, merge = median(OURS, "seconds"), median(OURS, "merge")
    row = [f"`{name}`", f"{whole:.1f}", f"{merge:.1f}", f"{median(OURS, 'job_peak_mb'):,.0f}"]
    if OURS_AS_THEIRS in found:
        row += [f"{median(OURS_AS_THEIRS, key):.1f}" for key in ("seconds", "merge")]
    if MERGEKIT not in found:
        return row + [""] * (11 - len(row))
    row += [""] * (6 - len(row))
    theirs = median(MERGEKIT, "seconds")
    work = max(theirs - median(START, "seconds"), 0.0) if START in found else theirs
    row += [f"{theirs:.1f}", f"{work:.1f}", f"{median(MERGEKIT, 'peak_mb'):,.0f}"]
    return [*row, f"{theirs / whole:.1f}", f"{work / merge:.1f}"]


def draw(rows: Mapping[str, Measured], output: str | os.PathLike[str]) -> None:
    """Draw what merge jobs take against size: a line for each method from the origin.

    The dashed line is what reading the sources and writing the result alone would take, at the
    speed of the fastest method measured.
    """
    sizes = sorted(rows, key=gigabytes)
    names = list(dict.fromkeys(name for size in sizes for name in rows[size]))
    fastest = 0.0
    with figure(output, 4.2) as drawing:
        axes = drawing.subplots()
        for number, name in enumerate(names):
            points = [(0.0, 0.0)]
            for size in sizes:
                if found := rows[size].get(name, {}).get(OURS):
                    seconds = statistics.median(row["merge"] for row in found)
                    moved = statistics.median(
                        row["bytes_read"] + row["bytes_written"] for row in found
                    )
                    fastest = max(fastest, moved / 1e9 / seconds)
                    points.append((moved / 1e9, seconds))
            style = ("-", ":", "-.")[number % 3]
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=name)
        most = axes.get_xlim()[1]
        label = f"{fastest:.1f} GB/s"
        axes.plot([0, most], [0, most / fastest], "--", color=FAINT, label=label)
        axes.set_xlabel("GB read and written")
        axes.set_ylabel("merge jobs, s")
        axes.legend(fontsize=7, ncols=2)
        drawing.tight_layout()
