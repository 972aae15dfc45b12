"""Whole builds by every merge method, side by side with mergekit: a table of seconds and memory."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
#: What an accelerator is compared with besides.
MERGEKIT_CARD = "mergekit-yaml --cuda"
#: What no merge job can be faster than.
BOUND = "reading, hashing and writing alone"
#: The method that others are compared with, of as many sources as some take.
OF_TWO = "linear-of-two"
_NUMERICS = {OURS: "float32", OURS_AS_THEIRS: "mergekit-0.1.5"}
_A_MINUTE = 60.0
#: Seconds of a run before it is measured: of any, and for each GB of a model.
_START, _A_GIGABYTE = 8.0, {OURS: 10.0, OURS_AS_THEIRS: 20.0, MERGEKIT: 60.0}
#: Of each method and contestant its runs.
Measured = dict[str, dict[str, list[Figures]]]


@dataclass(frozen=True)
class Place:
    """Where builds are measured.

    Args:
        cores: That a build may use.
        device: An accelerator that is measured beside the processor, as configurations name it.
    """

    cores: int = 2
    device: str = "cpu"

    @property
    def on_card(self) -> str:
        """The contestant that computes on the accelerator."""
        return f"{OURS}, {self.device}"


def measurable() -> list[str]:
    """Return the methods that merge models of random weights.

    Others let the models read a text first; these need a tokenizer, and take as long as that.
    """
    names = [m.name for m in methods() if not any(p.measuring for p in m.parameters)]
    return [OF_TWO, *names]


def _declared(name: str) -> MergeMethod:
    return method("linear" if name == OF_TWO else name)


def models_of(name: str) -> int:
    """Return how many models a method is measured with: three, or as many as it takes."""
    inputs = _declared(name).inputs
    most = inputs.maximum or 3
    if inputs.maximum_models is not None:
        most = min(most, inputs.maximum_models + (inputs.base == "required"))
    return min(most, 2 if name == OF_TWO else 3)


def recipe(name: str) -> dict[str, Any]:
    """Return a recipe of the first models."""
    declared, names = _declared(name), list(MODELS)[: models_of(name)]
    base = declared.inputs.base == "required"
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


def prepare(folder: Path, size: str, name: str, place: Place = Place()) -> dict[str, Contestant]:
    """Write the models and a method's recipe, if they are not there; return what is compared."""
    config = json.loads((ROOT / "resources/demo/miqu-tiny/config.json").read_text())
    for seed, model in enumerate(MODELS):
        if not (folder / model / INDEX).exists():
            make_model(folder / model, SIZES[size], config, seed)
    text = yaml.safe_dump(recipe(name), sort_keys=False)
    known = in_mergekit(_declared(name).name)
    (folder / f"{name}.yaml").write_text(text)
    found: dict[str, Contestant] = {}
    options = {label: {"numerics": numerics} for label, numerics in _NUMERICS.items()}
    on_card = place.device != "cpu"
    if on_card or not known:
        del options[OURS_AS_THEIRS]
    if on_card:
        options[place.on_card] = {"device": place.device}
    for number, (label, changed) in enumerate(options.items()):
        settings = {"recipes": [f"{name}.yaml"], "benchmark": {"tasks": []}, **changed}
        settings["sources"] = {model: model for model in MODELS}
        (folder / f"{name}-{number}.json").write_text(json.dumps(settings))
        snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "models"]
        snakemake += ["--cores", str(place.cores), "--quiet", "all"]
        left = ("results", ".snakemake", "logs", "benchmarks", ".shardmerge", f"{name}.lock.json")
        found[label] = Contestant(
            [*snakemake, "--configfile", f"{name}-{number}.json"], "results", left
        )
    sources = [str(folder / model) for model in MODELS[: models_of(name)]]
    bound = [sys.executable, str(ROOT / "tools/bench/bound.py"), "bound", *sources]
    found[BOUND] = Contestant(bound, "bound", ("bound",))
    tool = Path(sys.executable).with_name(MERGEKIT)
    if tool.exists() and known:
        command = [str(tool), f"{name}.yaml", "merged", "--quiet", "--no-copy-tokenizer"]
        command += ["--no-write-model-card", "--async-write", "--write-threads", "2"]
        threads = ["--num-threads", str(place.cores)]
        label = MERGEKIT_CARD if on_card else MERGEKIT
        more = [*threads, "--cuda"] if on_card else threads
        found[label] = Contestant([*command, *more], "merged", ("merged",))
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
    slow: int | None = None,
    alone: bool = False,
    place: Place = Place(),
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
        slow: How many runs of a contestant that takes over a minute; as many as of others if None.
        alone: Whether only builds in our own numerics are measured, and what bounds them.
        place: Where.
    """
    for name in names or measurable():
        found = rows.setdefault(name, {})
        contestants = prepare(folder, size, name, place)
        if alone:
            kept = (OURS, place.on_card, BOUND)
            contestants = {label: one for label, one in contestants.items() if label in kept}
        for turn in range(runs):
            for label, contestant in contestants.items():
                done = found.setdefault(label, [])
                if len(done) <= turn and not (_is_slow(done) and turn >= (slow or runs)):
                    warm(folder / model for model in MODELS)
                    done.append(measure(folder, contestant, place.cores))
                    keep()
        say(" | ".join(_row(name, rows)))


def _is_slow(done: Sequence[Figures]) -> bool:
    return any(row.get("exit", 0) > _A_MINUTE for row in done)


def estimate(
    sizes: Sequence[str],
    names: Sequence[str],
    runs: int,
    rows: Mapping[str, Measured],
    slow: int | None = None,
    alone: bool = False,
) -> float:
    """Return about how many seconds all runs take that are not measured yet.

    A median of the method's own runs counts where there is one, else what most methods take on two
    cores.
    """
    total = 0.0
    for size in sizes:
        for name in names or measurable():
            theirs = (MERGEKIT,) if in_mergekit(_declared(name).name) and not alone else ()
            for label in (*(_NUMERICS if theirs else (OURS,)), *theirs):
                found = rows.get(size, {}).get(name, {}).get(label, [])
                guess = _START + gigabytes(size) * _A_GIGABYTE[label]
                each = statistics.median(row["exit"] for row in found) if found else guess
                times = min(runs, slow or runs) if each > _A_MINUTE else runs
                total += each * max(times - len(found), 0)
    return total


def gigabytes(size: str) -> float:
    """Return how large a model of that size is."""
    return sum(math.prod(shape) for shape in SIZES[size].shapes.values()) * 2 / 1e9


def methods_table(rows: Mapping[str, Mapping[str, Sequence[Figures]]]) -> str:
    """Return a table of medians, in seconds and megabytes, without columns that are empty."""
    head = ["Method", "Sources", "Whole build, s", "Merge jobs, s"]
    head += [f"{BOUND.capitalize()}, s", "Peak of a job, MB"]
    head += ["In mergekit's numerics: build, s", "merge jobs, s"]
    head += [f"{MERGEKIT}, s", "its peak, MB", "Runs"]
    head += ["Build: times as fast", "in mergekit's numerics"]
    head += ["Merge jobs: times as fast as it less its start", "in mergekit's numerics"]
    head += ["Build: of linear's, as many sources"]
    found = [_row(name, rows) for name in rows]
    kept = [k for k in range(len(head)) if not found or any(row[k] for row in found)]
    return table([head[k] for k in kept], [[row[k] for k in kept] for row in found])


def _row(name: str, rows: Mapping[str, Mapping[str, Sequence[Figures]]]) -> list[str]:
    found, sources = rows[name], models_of(name)

    def median(label: str, key: str, method: str = name) -> float | None:
        return _median(rows.get(method, {}).get(label), key)

    linear = median(OURS, "seconds", {2: OF_TWO, 3: "linear"}.get(sources, ""))
    whole, merge = median(OURS, "seconds"), median(OURS, "merge")
    as_whole, as_merge = (median(OURS_AS_THEIRS, key) for key in ("seconds", "merge"))
    theirs, start = median(MERGEKIT, "seconds"), median(START, "seconds")
    work = None if theirs is None else max(theirs - (start or 0.0), 0.0)
    row = [f"`{name}`", str(sources)]
    row += [_number(value) for value in (whole, merge, median(BOUND, "seconds"))]
    row += [_number(median(OURS, "job_peak_mb"), 0)]
    row += [_number(value) for value in (as_whole, as_merge, theirs)]
    row += [_number(median(MERGEKIT, "peak_mb"), 0)]
    row += [", ".join(str(len(found[label])) for label in found if label not in (START, BOUND))]
    pairs = ((theirs, whole), (theirs, as_whole), (work, merge), (work, as_merge), (whole, linear))
    return row + [_number(_ratio(one, other)) for one, other in pairs]


def card_table(rows: Mapping[str, Mapping[str, Sequence[Figures]]], place: Place) -> str:
    """Return a table of medians in seconds: the processor, an accelerator, mergekit on it."""
    head = ["Method", "Sources", "Cores: build, s", "merge jobs, s"]
    head += [f"`device: {place.device}`: build, s", "merge jobs, s", f"`{MERGEKIT_CARD}`, s"]
    columns = [(OURS, "seconds"), (OURS, "merge")]
    columns += [(place.on_card, "seconds"), (place.on_card, "merge"), (MERGEKIT_CARD, "seconds")]
    found = []
    for name, own in rows.items():
        medians = (_median(own.get(label), key) for label, key in columns)
        found.append([f"`{name}`", str(models_of(name)), *map(_number, medians)])
    return table(head, found)


def _median(runs: Sequence[Figures] | None, key: str) -> float | None:
    return statistics.median(figures[key] for figures in runs) if runs else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def draw(rows: Mapping[str, Measured], output: str | os.PathLike[str]) -> None:
    """Draw what merge jobs take against size: a line from the origin for each method.

    Where several sizes were measured, methods of one alone are left out.

    The dashed line is what reading the sources and writing the result alone would take, at the
    speed of the fastest method measured.
    """
    sizes = sorted(rows, key=gigabytes)
    counts = Counter(name for size in sizes for name, own in rows[size].items() if own.get(OURS))
    names = [name for name, count in counts.items() if count >= min(2, len(sizes))]
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
