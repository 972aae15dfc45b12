"""Runs of the real Snakefile in a folder of their own, and what dry runs announce."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from helpers import forked_runs
from helpers.models import llama
from shardmerge.plan.made_jobs import MadeJob
from shardmerge.plan.plan import read_plan

REPOSITORY = Path(__file__).resolve().parents[2]
FLAGSHIP = REPOSITORY / "config" / "recipes" / "miquplus-midnight-70b.yaml"
NAME = "miquplus-midnight-70b"
BASE = "meta-llama/Llama-2-70b-hf"
RECIPIENT = "152334H/miqu-1-70b-sf"
FINETUNED = "sophosympatheia/Midnight-Rose-70B-v2.0.3"
#: Weight files of each source; all three differ, so that files and shards overlap unevenly.
FILES = {BASE: 3, RECIPIENT: 5, FINETUNED: 4}
#: Projections that the flagship's gradients name.
FILTERS = ("v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")
#: The stages of the flagship's second document that its gradients weigh.
MERGED_INPUTS = (RECIPIENT, "_" + NAME)
LAYERS = 11
DEMO_NAME = "miquplus-midnight-tiny"
#: Folder of the demo's models.
DEMO = "resources/demo"
#: A recipe of one model half way between two of them.
HALF_WAY = """\
name: made
merge_method: task_arithmetic
base_model: resources/demo/miqu-tiny
models:
  - model: resources/demo/midnight-tiny
    parameters: {weight: 0.5}
dtype: float16
"""
#: Seconds that a run may take: so many that only one that hangs takes longer.
PATIENCE = 600
#: Gives a folder by name, made by a function if no worker has made it yet (`conftest.once`).
Once = Callable[[str, Callable[[Path], object]], Path]


class Project:
    """A user's folder: a recipe, its sources, a configuration, and what runs there.

    Args:
        folder: It holds ``cfg.yaml``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"

    @classmethod
    def create(cls, folder: Path, recipe: str | None = None, **model: Any) -> Project:
        """Make a project of the flagship recipe with three random tiny sources.

        Args:
            folder: Where; made if it is missing.
            recipe: Text of another recipe.
            model: Sizes of the sources, as ``models.llama`` takes them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for seed, (name, files) in enumerate(FILES.items()):
            llama(folder / "models" / name, seed, **{"layers": LAYERS, "files": files} | model)
        project = cls(folder)
        project.recipe.write_text(recipe or FLAGSHIP.read_text(encoding="utf-8"))
        project.configure()
        return project

    def copy(self, folder: Path) -> Project:
        """Return the same project, results and times of files included, at another place."""
        shutil.copytree(self.folder, folder)
        return Project(folder)

    def configure(self, **changes: Any) -> None:
        """Write the configuration anew, with these keys besides recipe and sources."""
        values = {
            "recipes": ["recipe.yaml"],
            "sources": {name: f"models/{name}" for name in FILES},
        }
        text = yaml.safe_dump(values | changes)
        (self.folder / "cfg.yaml").write_text(text, encoding="utf-8")

    def documents(self) -> list[dict[str, Any]]:
        """Return the recipe's documents as data."""
        return list(yaml.safe_load_all(self.recipe.read_text(encoding="utf-8")))

    def write_documents(self, documents: Iterable[Mapping[str, Any]], **style: Any) -> None:
        """Write the recipe from data."""
        text = yaml.safe_dump_all(documents, sort_keys=False, **style)
        self.recipe.write_text(text, encoding="utf-8")

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        """Return the command line of a run of Snakemake."""
        return [
            *(sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile")),
            *("--directory", str(self.folder), "--configfile", str(self.folder / "cfg.yaml")),
            *("--cores", str(cores), *arguments),
        ]

    def run(
        self, *arguments: str, cores: int = 2, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end; stdout and stderr come back as one text."""
        return run(self.command(*arguments, cores=cores), self.folder, environment(env))

    def build(self, *arguments: str, **options: Any) -> None:
        """Build the shards (or these targets) and fail with the output if that does not work."""
        done = self.run(*(arguments or ("--until", "merge_shard")), **options)
        assert done.returncode == 0, done.stdout

    def pending(self, *arguments: str, cores: int = 2) -> list[str]:
        """Return the output files of all jobs that a dry run announces, sorted."""
        done = self.run("-n", *(arguments or ("--until", "merge_shard")), cores=cores)
        assert done.returncode == 0, done.stdout
        listed = re.findall(r"^    output: (.+)$", done.stdout, re.MULTILINE)
        assert len(listed) == _announced(done.stdout), done.stdout
        return sorted(file for line in listed for file in line.split(", "))

    def pending_shards(self, **options: Any) -> set[str]:
        """Return the names of the weight files that a dry run would build."""
        return {Path(p).name for p in self.pending(**options) if p.endswith(".safetensors")}

    def shards(self, name: str = NAME) -> dict[str, str]:
        """Return the SHA-256 of every shard of a model by file name."""
        folder = self.folder / "results" / name / "model"
        return {p.name: sha256(p) for p in sorted(folder.glob("*.safetensors"))}

    def made(self) -> list[tuple[MadeJob, Path]]:
        """Return the jobs that make sources, of the last plan, and their files."""
        plans = (self.folder / ".shardmerge" / "plans").glob("*.json")
        plan = read_plan(max(plans, key=lambda path: path.stat().st_mtime))
        return [(job, self.folder / job.output) for job in plan.made.values()]

    def parts(self) -> list[str]:
        """Return unfinished files anywhere in the project."""
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*.part"))

    def snapshot(self) -> dict[str, tuple[str, int]]:
        """Return content and time of all the user's files: Snakemake's notes are left out."""
        return {
            str(p.relative_to(self.folder)): (sha256(p), p.stat().st_mtime_ns)
            for p in sorted(self.folder.rglob("*"))
            if p.is_file() and p.relative_to(self.folder).parts[0] not in _NOTES
        }

    def kill_when(self, ready: Callable[[], bool], *arguments: str) -> bool:
        """Start a run, kill its whole process group with SIGKILL as soon as ``ready`` holds.

        Returns:
            Whether it was killed; False if it ended by itself before.
        """
        process = subprocess.Popen(
            self.command(*arguments, cores=1),
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + PATIENCE
        try:
            while process.poll() is None and time.monotonic() < end:
                if ready():
                    return True
                time.sleep(0.001)
            return False
        finally:
            running = process.poll() is None
            if running:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


_NOTES = (".snakemake", ".shardmerge")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a run: one thread for every library, no colours."""
    quiet = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"} | quiet | (extra or {})


def run(
    command: list[str], folder: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m snakemake` in a folder to its end; stdout and stderr come back as one text."""
    if any(k.startswith("PYTHON") and v != os.environ.get(k) for k, v in variables.items()):
        # Python reads them when it starts.
        return subprocess.run(
            command,
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
    with tempfile.NamedTemporaryFile("r", prefix="said-") as said:
        words = command[command.index("snakemake") + 1 :]
        status = forked_runs.run(words, folder, variables, Path(said.name), PATIENCE)
        return subprocess.CompletedProcess(command, status, said.read())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gradient(values: Any, layer: int, layers: int = LAYERS) -> float:
    """Return a recipe's value at a layer, by mergekit's definition of gradients."""
    if not isinstance(values, list):
        return float(values)
    scaled = layer / (layers - 1) * (len(values) - 1)
    low = int(scaled)
    share = scaled - low
    return (1 - share) * values[low] + share * values[min(low + 1, len(values) - 1)]


def share_of_donor(documents: list[dict[str, Any]], tensor: str) -> float:
    """Return the normalised weight of the donor in the flagship's last document at a tensor."""
    weights = {}
    for entry in documents[-1]["models"]:
        rules = entry["parameters"]["weight"]
        rule = next(r for r in rules if r.get("filter", "*") in ("*",) or r["filter"] in tensor)
        inside = re.match(r"model\.layers\.(\d+)\.", tensor)
        weights[entry["model"]] = gradient(rule["value"], int(inside[1]) if inside else 0)
    recipient, donor = (weights[name] for name in MERGED_INPUTS)
    return donor / (recipient + donor)


def shards_that_move(project: Project, before: Any, after: Any) -> set[str]:
    """Return the shards in which some tensor's coefficient differs between two recipes.

    Shards follow the recipient's files, so its index tells which tensors each one holds.
    """
    index = project.folder / "models" / RECIPIENT / "model.safetensors.index.json"
    where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return {
        file
        for tensor, file in where.items()
        if abs(share_of_donor(before, tensor) - share_of_donor(after, tensor)) > 1e-9
    }


def set_weight(documents: list[dict[str, Any]], model: int, filter_: str | None, value: Any) -> Any:
    """Set the value of a filter (None: the last rule) of one input of the last document."""
    rules = documents[-1]["models"][model]["parameters"]["weight"]
    next(rule for rule in rules if rule.get("filter") == filter_)["value"] = value
    return documents


def _announced(text: str) -> int:
    if re.search(r"^Nothing to be done", text, re.MULTILINE):
        return 0
    total = re.search(r"^total +(\d+)$", text, re.MULTILINE)
    return int(total[1]) if total else 0


def demo(
    folder: Path, recipe: str = f"{DEMO_NAME}.yaml", config: str = "config.yaml", **changes: Any
) -> Project:
    """Return a project of the shipped demo: its models, tasks and configuration, and a recipe."""
    (folder / "resources").mkdir(parents=True)
    (folder / DEMO).symlink_to(REPOSITORY / DEMO)
    (folder / "config" / "recipes").mkdir(parents=True)
    (folder / "config" / "tasks").symlink_to(REPOSITORY / "config" / "tasks")
    shipped = REPOSITORY / "config" / "recipes" / recipe
    path = folder / "config" / "recipes" / recipe
    path.write_text(shipped.read_text(encoding="utf-8"), encoding="utf-8")
    project = Project(folder)
    project.recipe = path
    values = yaml.safe_load((REPOSITORY / "config" / config).read_text(encoding="utf-8"))
    values |= {"recipes": [f"config/recipes/{recipe}"]} | changes
    (folder / "cfg.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return project


def scores(project: Project, name: str = DEMO_NAME) -> dict[tuple[str, str], float]:
    """Return the accuracies of a build's table by model and task."""
    table = project.folder / "results" / name / "benchmarks" / "table.json"
    cells = json.loads(table.read_text(encoding="utf-8"))["cells"]
    return {(c["model"], c["task"]): c["value"] for c in cells if c["metric"] == "acc"}
