"""Measure whole builds side by side with mergekit-multi and `cp -r`, and a job's memory."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shardmerge.cli import run
from shardmerge.headers import write_header

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "config/recipes/miquplus-midnight-tiny.yaml"
MODELS = ("llama2-tiny", "miqu-tiny", "midnight-tiny")
SIZES = {  # layers, hidden, intermediate, vocabulary, files
    "small": (4, 512, 1408, 4000, 3),
    "2GB": (22, 2048, 5632, 32000, 5),
    "6GB": (26, 3200, 8640, 32000, 10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="2GB")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, in turn")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="JSON with all figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="shardmerge-bench-") as name:
        work = Path(name)
        make_models(work, *SIZES[args.size])
        shutil.copy(RECIPE, work / "recipe.yaml")
        commands = contestants(work, args.cores)
        times: dict[str, list[dict[str, float]]] = {key: [] for key in commands}
        for turn in range(args.pairs + 1):  # the first turn warms the page cache
            for key, (command, output) in commands.items():
                figures = measure(command, work)
                print(f"{turn} {key}: {figures['seconds']:.1f} s, "
                      f"{figures['peak_mb']:.0f} MB", flush=True)  # fmt: skip
                if turn:
                    times[key].append(figures)
                for path in output:
                    shutil.rmtree(work / path, ignore_errors=True)
    medians = {k: statistics.median(f["seconds"] for f in rows) for k, rows in times.items()}
    ours = medians["shardmerge"]
    for key, seconds in medians.items():
        peak = max(f["peak_mb"] for f in times[key])
        print(f"{key}: median {seconds:.2f} s ({seconds / ours:.2f} of ours), peak {peak:.0f} MB")
    if args.output:
        args.output.write_text(json.dumps({"size": args.size, "runs": times}, indent=1) + "\n")


def contestants(work: Path, cores: int) -> dict[str, tuple[list[str], list[str]]]:
    """Return the commands to compare, each with the folders that it leaves behind."""
    sources = {f"resources/demo/{m}": m for m in MODELS}
    config = {"recipes": ["recipe.yaml"], "sources": sources, "benchmark": {"tasks": []}}
    (work / "config.json").write_text(json.dumps(config | {"deltas": "fuse"}))
    (work / "stored.json").write_text(json.dumps(config | {"deltas": "store"}))
    # These models have no tokenizer, which mergekit would load for `tokenizer_source`.
    text = RECIPE.read_text().replace("resources/demo/", f"{work}/")
    text = text.replace("tokenizer_source: base\n", "")
    (work / "mergekit.yaml").write_text(text)
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile")]
    snakemake += ["--cores", str(cores), "--quiet", "all", "--until", "merge_shard"]
    left = ["results", ".snakemake", "logs", "benchmarks"]
    bins = Path(sys.executable).parent
    found: dict[str, tuple[list[str], list[str]]] = {
        "shardmerge": ([*snakemake, "--configfile", "config.json"], left),
        "shardmerge stored": ([*snakemake, "--configfile", "stored.json"], left),
        "cp -r of one model": (["cp", "-r", "miqu-tiny", "copy"], ["copy"]),
    }
    if (bins / "mergekit-multi").exists():
        command = [str(bins / "mergekit-multi"), "mergekit.yaml", "-I", str(work / "merged")]
        command += ["--quiet"]
        command += ["--no-copy-tokenizer"]
        found["mergekit-multi"] = (command, ["merged"])
    return found


def measure(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command; return wall seconds and the largest resident set of any of its processes."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    start = time.monotonic()
    done = subprocess.run(
        ["/usr/bin/env", "time", "-f", "peak %M", *command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    ) if shutil.which("time") else _plain(command, folder, env)  # fmt: skip
    seconds = time.monotonic() - start
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}\n{done.stderr}")
    found = re.findall(r"peak (\d+)", done.stderr)
    return {"seconds": seconds, "peak_mb": int(found[-1]) / 1024 if found else float("nan")}


def _plain(
    command: list[str], folder: Path, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print('peak', peak, file=sys.stderr)\n"
        "sys.exit(done.returncode)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *command], cwd=folder, env=env, capture_output=True, text=True
    )


def make_models(
    work: Path, layers: int, hidden: int, inter: int, vocabulary: int, files: int
) -> None:
    """Write three synthetic float16 Llama checkpoints of related random weights."""
    import numpy as np

    heads = hidden // 64
    config = json.loads((ROOT / "resources/demo/miqu-tiny/config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": inter, "num_hidden_layers": layers}
    config |= {"vocab_size": vocabulary, "num_attention_heads": heads, "head_dim": 64}
    config |= {"num_key_value_heads": heads}
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= dict.fromkeys(
            [f"{p}input_layernorm.weight", f"{p}post_attention_layernorm.weight"], (hidden,)
        )
        for name in "qkvo":
            shapes[f"{p}self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name in ("gate", "up"):
            shapes[f"{p}mlp.{name}_proj.weight"] = (inter, hidden)
        shapes[f"{p}mlp.down_proj.weight"] = (hidden, inter)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    names = list(shapes)
    for seed, model in enumerate(MODELS):
        generator = np.random.default_rng(seed)
        block = (generator.standard_normal(1 << 20) * 0.02).astype(np.float16)
        folder = work / model
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        weight_map = {}
        for k in range(files):
            chosen = names[len(names) * k // files : len(names) * (k + 1) // files]
            file = f"model-{k + 1:05d}-of-{files:05d}.safetensors"
            rows = [(n, "F16", shapes[n]) for n in chosen]
            with open(folder / file, "wb") as out:
                out.write(write_header(rows, {"format": "pt"}))
                for n in chosen:
                    left = int(np.prod(shapes[n]))
                    while left > 0:
                        out.write(block[: min(left, block.size)].tobytes())
                        left -= block.size
            weight_map |= dict.fromkeys(chosen, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    run(main)
