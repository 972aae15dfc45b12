"""Planning at scale, from locks alone: no weights, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shardmerge.base.files import write_text
from shardmerge.plan.files import CACHE
from shardmerge.plan.plan import read_plan
from shardmerge.recipe.recipe import load_recipe
from shardmerge.sources.sources import lock_path, lock_text
from tools.bench.models import DEEPSEEK, LARGE, Shapes, deepseek, experts, lock_of

ROOT = Path(__file__).resolve().parents[2]
FLAGSHIP = ROOT / "config/recipes/miquplus-midnight-70b.yaml"
_AVERAGE = """merge_method: linear
models:
  - model: some/one
    parameters: {{weight: 0.5}}
  - model: some/other
    parameters: {{weight: 0.5}}
dtype: {}
"""
_JOB = (
    "import json, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
    "from shardmerge.plan.decide import load_plan\n"
    "from shardmerge.recipe.settings import load_settings, with_shipped\n"
    "start = time.perf_counter()\n"
    "settings = load_settings(json.load(open('config.json')))\n"
    "settings = with_shipped(settings, Path(sys.argv[1]).parent)\n"  # as the workflow's are
    "load_plan(settings, head=sys.argv[2] == 'head', say=lambda line: None)\n"
    "print(time.perf_counter() - start)\n"
)


class Case(NamedTuple):
    """What is planned.

    Args:
        shapes: Of a source's tensors.
        recipe: The recipe's text.
        files: How many files the first source has.
        dtypes, config: As ``lock_of`` takes them.
    """

    shapes: Shapes
    recipe: str
    files: int
    dtypes: Mapping[str, str] | None = None
    config: Mapping[str, Any] | None = None


def cases() -> dict[str, Case]:
    """Return what is planned, by its name in the page."""
    flagship = FLAGSHIP.read_text()
    found = {name: Case(size.shapes, flagship, size.files) for name, size in LARGE.items()}
    found["experts"] = Case(experts(60, 512), _AVERAGE.format("float16"), 163)
    shapes, dtypes = deepseek()
    average = _AVERAGE.format("bfloat16")
    return found | {"671B, FP8 to BF16": Case(shapes, average, 163, dtypes, DEEPSEEK)}


def prepare(folder: Path, case: Case) -> None:
    """Write a recipe, its lock and a configuration to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(case.recipe)
    references = [reference.model for reference in load_recipe(path).sources]
    lock = lock_of(references, case.shapes, case.files, case.dtypes, case.config)
    write_text(lock_path(path), lock_text(lock))
    config = {"recipes": ["recipe.yaml"], "benchmark": {"tasks": []}}
    (folder / "config.json").write_text(json.dumps(config))


def compare(folder: Path, name: str, say: Callable[[str], None]) -> dict[str, float]:
    """Return the seconds of planning, of planning again, of a job's parse, and of Snakemake.

    Of Snakemake: ``dry run`` where everything is to be made, ``no-op`` where nothing is.
    """
    case = cases()[name]
    prepare(folder, case)
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "models"]
    snakemake += ["--quiet", "all", "--configfile", "config.json", "--cores", "2"]
    seconds = {"tensors": float(len(case.shapes)), "files": float(case.files)}
    for what in ("plan", "again", "job"):
        command = [sys.executable, "-c", _JOB, str(ROOT / "scripts")]
        command.append("job" if what == "job" else "head")
        seconds[what] = float(_run(command, folder).stdout.split()[-1])
    seconds["dry run"] = _seconds([*snakemake, "-n"], folder)
    _pretend(snakemake, folder)
    seconds["no-op"] = _seconds(snakemake, folder)
    say(f"{name}: " + ", ".join(f"{k} {v:,.2f}" for k, v in seconds.items()))
    return seconds


def _pretend(snakemake: list[str], folder: Path) -> None:
    """Let a model look finished: every file is there, of its true size where it has weights.

    The large ones are sparse and take no disk.
    """
    plan = read_plan(next((folder / CACHE / "plans").glob("*.json")))
    sizes = {job.output: job.bytes_written for job in plan.shards}
    sizes |= {path: job.size for path, job in plan.fetches.items()}
    for line in _run([*snakemake, "--summary"], folder).stdout.splitlines()[1:]:
        name = line.split("\t")[0]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        if name in sizes:
            os.truncate(path, sizes[name])
    _run([*snakemake, "--touch", "--forceall"], folder)
    if "Nothing to be done" not in _run([*snakemake, "-n", "--quiet", "host"], folder).stdout:
        raise SystemExit(f"the model in {folder} does not look finished")


def _seconds(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    _run(command, folder)
    return time.perf_counter() - start


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return done
