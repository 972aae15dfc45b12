"""The same recipe over the same sources gives the same bytes, however it was run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from helpers.workflow import FILES, NAME, Once, Project

#: Large enough that a job can be caught while it writes.
LARGE = {"hidden": 256, "inter": 1536, "vocab": 4096, "kv": 128}


class TestSameBytes:
    @pytest.mark.parametrize(
        ("cores", "deltas", "seed"),
        [
            pytest.param(1, "auto", "0", id="one-core"),
            pytest.param(2, "fuse", "1", id="fuse"),
            pytest.param(2, "store", "random", id="store"),
            pytest.param(1, "store", "1", id="store-one-core", marks=pytest.mark.slow),
            pytest.param(2, "auto", "random", id="auto", marks=pytest.mark.slow),
        ],
    )
    def test_however_it_ran(
        self, flagship: Project, tmp_path: Path, cores: int, deltas: str, seed: str
    ) -> None:
        project = Project.create(tmp_path / "project")
        project.configure(deltas=deltas, resources={"merge_threads": cores})
        project.build(cores=cores, env={"PYTHONHASHSEED": seed})
        assert project.shards() == flagship.shards()
        stored = list((project.folder / "results" / "deltas").rglob("*.safetensors"))
        assert bool(stored) == (deltas == "store")
        assert project.parts() == []

    def test_cores_that_have_no_shard_help_with_others(self, tmp_path: Path) -> None:
        """Three shards of TIES on six cores; sums gain nothing."""
        base, *others = FILES
        ties = {
            "name": "merged",
            "merge_method": "ties",
            "base_model": base,
            "models": [{"model": one, "parameters": {"density": 0.5}} for one in others],
            "parameters": {"weight": 1.0},
            "dtype": "float16",
        }
        project = Project.create(tmp_path / "project", yaml.safe_dump(ties))
        commands = project.run("-n", "-p", "--until", "merge_shard", cores=6).stdout
        assert re.findall(r"merge\.py .*--threads=(\d+)", commands) == ["2"] * 3
        project.build(cores=6)
        shards = project.shards("merged")
        project.configure(resources={"merge_threads": 1})
        project.build("--forceall", "--until", "merge_shard", cores=1)
        assert project.shards("merged") == shards
        project.write_documents([ties | {"merge_method": "task_arithmetic"}])
        project.configure()
        commands = project.run("-n", "-p", "--until", "merge_shard", cores=6).stdout
        assert re.findall(r"merge\.py .*--threads=(\d+)", commands) == ["1"] * 3

    def test_two_hash_seeds_plan_the_same(self, tmp_path: Path) -> None:
        """A digest that followed the order of a set would differ between the two."""
        project = Project.create(tmp_path / "project")
        plans = []
        for seed in ("0", "1"):
            done = project.run("-n", "--until", "merge_shard", env={"PYTHONHASHSEED": seed})
            assert done.returncode == 0, done.stdout
            folder = project.folder / ".shardmerge"
            plans.append(
                {
                    str(p.relative_to(folder)): p.read_bytes()
                    for part in ("plans", "specs")
                    for p in sorted((folder / part).iterdir())
                }
            )
            for part in ("plans", "specs"):
                for path in (folder / part).iterdir():
                    path.unlink()
        assert plans[0] and plans[0] == plans[1]


@pytest.fixture(scope="module")
def large(once: Once) -> Project:
    """A project with larger sources; its shards are built in `whole` below."""
    return Project(once("large", lambda folder: Project.create(folder, **LARGE)))


@pytest.fixture(scope="module")
def whole(large: Project, once: Once) -> dict[str, str]:
    """SHA-256 of the shards of a run that nobody disturbed."""
    return Project(once("large-built", lambda folder: large.copy(folder).build())).shards()


def shards_of(project: Project) -> list[Path]:
    """Return the shards that have their names."""
    return list((project.folder / "results" / NAME / "model").glob("model-*.safetensors"))


def parts_of(project: Project) -> list[Path]:
    """Return the shards that are being written."""
    return list((project.folder / "results" / NAME / "model").glob(".*.part"))


#: When a run is killed: what holds of a project at that moment.
MOMENTS: dict[str, Callable[[Project], bool]] = {
    "while-the-first-shard-is-written": lambda p: bool(parts_of(p)),
    "after-the-first-shard": lambda p: len(shards_of(p)) >= 1,
    "while-a-later-shard-is-written": lambda p: len(shards_of(p)) >= 2 and bool(parts_of(p)),
}


@pytest.mark.slow
class TestKilled:
    """SIGKILL to the whole process group, then the same command again."""

    @pytest.mark.parametrize("moment", MOMENTS)
    def test_and_resumed(
        self, large: Project, whole: dict[str, str], tmp_path: Path, moment: str
    ) -> None:
        project = large.copy(tmp_path / "project")
        assert project.kill_when(lambda: MOMENTS[moment](project), "--until", "merge_shard")
        finished = project.shards()
        assert finished.items() <= whole.items(), "a shard is whole as soon as it has its name"
        assert len(finished) < len(whole)
        # Snakemake leaves its lock when it is killed; its message tells the user what to type.
        locked = project.run("--until", "merge_shard")
        assert locked.returncode != 0
        assert "--unlock" in locked.stdout
        project.build("--unlock")
        project.build("--until", "merge_shard")
        assert project.shards() == whole
        assert project.pending() == []
        assert project.parts() == []

    def test_a_shard_that_was_finished_is_not_built_again(
        self, large: Project, whole: dict[str, str], tmp_path: Path
    ) -> None:
        project = large.copy(tmp_path / "project")
        # Snakemake notes a job's end after its files have their names: wait for two.
        assert project.kill_when(lambda: len(shards_of(project)) >= 2, "--until", "merge_shard")
        before = {p.name: p.stat().st_mtime_ns for p in shards_of(project)}
        project.build("--unlock")
        pending = project.pending_shards()
        assert len(pending) < len(whole)
        project.build()
        after = {p.name: p.stat().st_mtime_ns for p in shards_of(project)}
        kept = set(before) - pending
        assert kept and {n: after[n] for n in kept} == {n: before[n] for n in kept}
        assert project.shards() == whole
