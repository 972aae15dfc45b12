"""Whole builds side by side: shardmerge, mergekit-multi and a plain copy of the output."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from shardmerge.sources.checkpoint_files import INDEX
from tools.bench.models import SIZES, make_model

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "config/recipes/miquplus-midnight-tiny.yaml"
MODELS = ("llama2-tiny", "miqu-tiny", "midnight-tiny")
#: Configurations of shardmerge that are measured.
OURS = {
    "fused": {"deltas": "fuse"},
    "stored": {"deltas": "store"},
    "numerics mergekit-0.1.5": {"deltas": "fuse", "numerics": "mergekit-0.1.5"},
}
#: A copy that is on the disk when it is done, as shardmerge's shards are.
SYNCED = "cp -r, sync"
#: What no build can be faster than, together: the flagship's bytes, which are those of two models
#: to read and one to write and to read back, moved by ``tools/bench/bound.py``, and Snakemake until
#: a trivial job is done.
BYTES, SNAKEMAKE = "its bytes alone", "Snakemake alone"
#: A workflow of Snakemake with as many jobs as one asks for.
TRIVIAL = """rule all:
    input: expand("out/{i}", i=range(int(config["count"])))
rule one:
    output: "out/{i}"
    shell: "touch {output}"
"""
Figures = dict[str, float]


@dataclass(frozen=True)
class Contestant:
    """A command that is measured.

    Args:
        command: Run in the folder of the models.
        output: Folder of which the newest file is the end of the work; None for the command's end.
        leaves: What is removed after each run.
    """

    command: list[str]
    output: str | None
    leaves: tuple[str, ...]


def prepare(folder: Path, size: str) -> dict[str, Contestant]:
    """Write three models, if they are not there yet, and return what is compared on them."""
    config = json.loads((ROOT / "resources/demo/miqu-tiny/config.json").read_text())
    for seed, model in enumerate(MODELS):
        if not (folder / model / INDEX).exists():
            make_model(folder / model, SIZES[size], config, seed)
    shutil.copy(RECIPE, folder / "recipe.yaml")
    # These models have no tokenizer, which mergekit would load for `tokenizer_source`.
    text = RECIPE.read_text().replace("resources/demo/", f"{folder}/")
    (folder / "mergekit.yaml").write_text(text.replace("tokenizer_source: base\n", ""))
    sources = {f"resources/demo/{model}": model for model in MODELS}
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile")]
    snakemake += ["--cores", "2", "models", "--quiet", "all", "--configfile"]
    found = {}
    for number, (name, options) in enumerate(OURS.items()):
        settings = {"recipes": ["recipe.yaml"], "sources": sources, "benchmark": {"tasks": []}}
        (folder / f"{number}.json").write_text(json.dumps(settings | options))
        left = ("results", ".snakemake", "logs", "benchmarks", ".shardmerge", "recipe.lock.json")
        found[name] = Contestant([*snakemake, f"{number}.json"], "results", left)
    found["cp -r"] = Contestant(["cp", "-r", "miqu-tiny", "copy"], "copy", ("copy",))
    synced = ["sh", "-c", "cp -r miqu-tiny copy && sync copy/*"]
    found[SYNCED] = Contestant(synced, None, ("copy",))
    bound = [sys.executable, str(ROOT / "tools/bench/bound.py"), "--back", "bound"]
    found[BYTES] = Contestant([*bound, *MODELS[:2]], None, ("bound",))
    (folder / "trivial.smk").write_text(TRIVIAL)
    alone = [sys.executable, "-m", "snakemake", "-s", "trivial.smk", "--scheduler", "greedy"]
    alone += ["--cores", "2", "--quiet", "all", "--config", "count=1"]
    found[SNAKEMAKE] = Contestant(alone, "out", ("out", ".snakemake"))
    tool = Path(sys.executable).with_name("mergekit-multi")
    if tool.exists():
        command = [str(tool), "mergekit.yaml", "-I", str(folder / "merged"), "--quiet"]
        command += ["--no-copy-tokenizer"]
        found["mergekit-multi"] = Contestant(command, "merged", ("merged",))
        found["mergekit-multi --help"] = Contestant([str(tool), "--help"], None, ())
    return found


def compare(
    folder: Path, size: str, pairs: int, say: Callable[[str], None]
) -> dict[str, list[Figures]]:
    """Run all contestants in turn, so many times; return each one's figures."""
    rows: dict[str, list[Figures]] = {}
    contestants = prepare(folder, size)
    for turn in range(pairs):
        for name, contestant in contestants.items():
            if contestant.output or name == BYTES:
                warm(folder / model for model in MODELS)
            figures = measure(folder, contestant)
            rows.setdefault(name, []).append(figures)
            say(f"{size} {turn + 1}/{pairs} {name}: "
                + ", ".join(f"{k} {v:,.1f}" for k, v in figures.items()))  # fmt: skip
    return rows


def measure(folder: Path, contestant: Contestant, cores: int = 2) -> Figures:
    """Run a command on so many cores; return its figures.

    ``seconds`` is from its start to the last byte of its output, ``exit`` to its end, ``peak_mb``
    the largest resident set of any of its processes; of shardmerge also what its merge jobs took
    (``merge``, from the first one's start to the last one's end) and where their time went.
    """
    for path in contestant.leaves:
        shutil.rmtree(folder / path, ignore_errors=True)
        (folder / path).unlink(missing_ok=True)
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(cores)}
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", _TIMED, *contestant.command],
        cwd=folder, env=env, capture_output=True, text=True,
    )  # fmt: skip
    end = time.time()
    if done.returncode:
        raise SystemExit(f"{contestant.command[0]} failed:\n{done.stdout}\n{done.stderr}")
    peak = int(re.findall(r"peak (\d+)", done.stderr)[-1]) / 1024
    last = end
    if contestant.output:
        files = [p for p in (folder / contestant.output).rglob("*") if p.is_file()]
        last = max(path.stat().st_mtime for path in files)
        last = last if start <= last <= end else end  # a copy may keep its source's time
    figures = {"seconds": last - start, "exit": end - start, "peak_mb": peak}
    if contestant.output == "results":
        figures |= _merge_figures(folder)
    for path in contestant.leaves:
        shutil.rmtree(folder / path, ignore_errors=True)
    return figures


def warm(models: Iterable[Path]) -> None:
    """Read all weights, so that they are in the page cache as far as it is large enough."""
    buffer = bytearray(1 << 23)
    for path in (path for model in models for path in sorted(model.glob("*.safetensors"))):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


_TIMED = (
    "import resource, subprocess, sys\n"
    "done = subprocess.run(sys.argv[1:])\n"
    "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
    "print('peak', peak, file=sys.stderr)\n"
    "sys.exit(done.returncode)"
)


def _merge_figures(folder: Path) -> Figures:
    """Return the span of the merge jobs in seconds, their memory, bytes and phases."""
    found = sorted((folder / "results").rglob("records/*.json"))
    records = [json.loads(path.read_text()) for path in found]
    ends = [path.stat().st_mtime for path in found]
    starts = [e - r["seconds"]["total"] for e, r in zip(ends, records, strict=True)]
    figures = {"merge": max(ends) - min(starts)}
    figures["job_peak_mb"] = max(record["peak_memory"] for record in records) / 2**20
    for phase in records[0]["seconds"]:
        figures[phase] = sum(record["seconds"][phase] for record in records)
    for key in ("bytes_read", "bytes_written"):
        figures[key] = sum(record[key] for record in records)
    return figures
