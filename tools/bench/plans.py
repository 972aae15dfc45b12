"""Planning at scale, from locks alone: no weights, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shardmerge.base.files import write_json
from shardmerge.plan.files import CACHE
from shardmerge.plan.plan import read_plan
from shardmerge.recipe.recipe import load_recipe
from shardmerge.sources.sources import lock_path
from tools.bench.models import LARGE, Shapes, experts, lock_of

ROOT = Path(__file__).resolve().parents[2]
FLAGSHIP = ROOT / "config/recipes/miquplus-midnight-70b.yaml"
_AVERAGE = """merge_method: linear
models:
  - model: some/one
    parameters: {weight: 0.5}
  - model: some/other
    parameters: {weight: 0.5}
dtype: float16
"""
_JOB = (
    "import json, sys, time; sys.path.insert(0, sys.argv[1])\n"
    "from shardmerge.plan.decide import load_plan\n"
    "from shardmerge.recipe.settings import load_settings\n"
    "start = time.perf_counter()\n"
    "settings = load_settings(json.load(open('config.json')))\n"
    "load_plan(settings, head=sys.argv[2] == 'head', say=lambda line: None)\n"
    "print(time.perf_counter() - start)\n"
)


def cases() -> dict[str, tuple[Shapes, str, int]]:
    """Return what is planned: shapes, recipe and files of the first source."""
    flagship = FLAGSHIP.read_text()
    found = {name: (size.shapes, flagship, size.files) for name, size in LARGE.items()}
    return found | {"experts": (experts(60, 512), _AVERAGE, 163)}


def prepare(folder: Path, shapes: Shapes, recipe: str, files: int) -> None:
    """Write a recipe, its lock and a configuration to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    references = [reference.model for reference in load_recipe(path).sources]
    write_json(lock_path(path), lock_of(references, shapes, files).to_json())
    config = {"recipes": ["recipe.yaml"], "benchmark": {"tasks": []}}
    (folder / "config.json").write_text(json.dumps(config))


def compare(folder: Path, name: str, say: Callable[[str], None]) -> dict[str, float]:
    """Return the seconds of planning, of planning again, of a job's parse, and of Snakemake.

    Of Snakemake: ``dry run`` where everything is to be made, ``no-op`` where nothing is.
    """
    shapes, recipe, files = cases()[name]
    prepare(folder, shapes, recipe, files)
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "models"]
    snakemake += ["--quiet", "all", "--configfile", "config.json", "--cores", "2"]
    seconds = {"tensors": float(len(shapes)), "files": float(files)}
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
