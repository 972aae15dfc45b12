"""`keep_sources: false`: a build whose sources are larger than its disk, measured while it runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.hub_cases import environment
from helpers.loopback_hub import LoopbackHub
from helpers.models import llama
from helpers.workflow import FILES, NAME, Project
from helpers.workflow import environment as run_environment
from shardmerge.base.errors import UserError
from shardmerge.base.text import parse_size
from shardmerge.plan.decide import load_plan
from shardmerge.recipe.settings import load_settings

#: 5 MB a file, so that notes and logs count little beside them.
SIZES = {"layers": 11, "hidden": 256, "inter": 2048, "vocab": 8192, "kv": 128}
SHARDS = 8
#: Records, checks, logs and what file systems add.
SMALL = 2_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Hub with the flagship's three sources, cut in files that overlap unevenly."""
    root = tmp_path_factory.mktemp("lean") / "hub"
    for seed, (name, files) in enumerate(zip(FILES, (7, SHARDS, 9), strict=True)):
        llama(root / name, seed, **SIZES, files=files)
    with LoopbackHub(root) as hub:
        yield hub


@pytest.fixture(scope="module")
def expected(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """SHA-256 of the shards, built from the same folders with everything kept."""
    project = Project(tmp_path_factory.mktemp("lean") / "kept")
    project.folder.mkdir()
    write_recipe(project)
    project.configure(sources={name: str(server.store.root / name) for name in FILES})
    project.build()
    return project.shards()


def write_recipe(project: Any) -> None:
    source = Path(__file__).resolve().parents[2] / "config" / "recipes" / f"{NAME}.yaml"
    shutil.copyfile(source, project.recipe)


def plan_of(project: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(project.folder)
    config = yaml.safe_load((project.folder / "cfg.yaml").read_text())
    return load_plan(load_settings(config), say=lambda line: None)


def checks(count: Any = SHARDS) -> list[Any]:
    names = [f"model-{i:05d}-of-{count:05d}" for i in range(1, count + 1)]
    return [f"results/{NAME}/checks/{name}.json" for name in names]


class Gauge(threading.Thread):
    """Looks at the disk that folders take until it is told to stop; ``highest`` is in bytes."""

    def __init__(self, *folders: Any) -> None:
        super().__init__(daemon=True)
        self.folders, self.highest, self.looks = folders, 0, 0
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.002):
            self.highest = max(self.highest, sum(map(taken, self.folders)))
            self.looks += 1

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self.join()


def taken(folder: Any) -> Any:
    """Return the bytes that the files below a folder take."""
    total = 0
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                total += taken(entry.path)
            else:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:  # it has just been deleted
        pass
    return total


@pytest.mark.slow
class TestHighWater:
    @pytest.mark.parametrize(("deltas", "tight"), [("fuse", False), ("store", True)])
    def test_stays_within_the_estimate(
        self,
        server: Any,
        expected: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        deltas: Any,
        tight: Any,
    ) -> None:
        project = Project(tmp_path / "project")
        project.folder.mkdir()
        write_recipe(project)
        env = environment(server, tmp_path / "home")
        options = {"sources": {}, "keep_sources": False, "deltas": deltas}
        project.configure(**options)
        assert project.run("lock", env=env).returncode == 0
        plan = plan_of(project, monkeypatch)
        estimate = plan.schedule.peak()
        if tight:
            estimate = smallest_budget(project, options, monkeypatch)
            project.configure(**options, disk_budget=estimate)
        sources = sum(plan.fetches[p].size for p in plan.fetches if p not in plan.unread)
        server.log.clear()
        with Gauge(project.folder / "resources", project.folder / "results") as gauge:
            project.build(*checks(), env=env, cores=4)
        assert gauge.looks > 100
        assert gauge.highest <= estimate + SMALL
        assert gauge.highest > 0.7 * estimate
        assert estimate < sources
        assert project.shards() == expected
        assert list((project.folder / "resources").rglob("*.safetensors")) == []
        fetched = Counter(
            r.path for r in server.requests(r"/_cdn/.*safetensors$") if r.range is None
        )
        assert set(fetched.values()) == {1}, "nothing is fetched twice"
        assert project.pending(*checks()) == []

    def test_on_a_disk_of_that_size(
        self, server: Any, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file system that has no more room than the estimate, and a little for notes."""
        project = Project(tmp_path / "project")
        project.folder.mkdir()
        write_recipe(project)
        env = environment(server, tmp_path / "home")
        project.configure(sources={}, keep_sources=False, deltas="fuse")
        assert project.run("lock", env=env).returncode == 0
        size = plan_of(project, monkeypatch).schedule.peak() + 2 * SMALL
        kept = tmp_path / "kept"
        project.folder.rename(kept)
        project.folder.mkdir()
        shutil.rmtree(kept / ".snakemake")
        folder, build = (
            shlex.quote(str(project.folder)),
            shlex.join(project.command(*checks(), cores=4)),
        )
        script = (
            f"mount -t tmpfs -o size={size} none {folder} || exit 77; "
            f"cp -r {shlex.quote(str(kept))}/. {folder} && cd {folder} && {build} 1>&2 && "
            f"df --output=size -B1 {folder} | tail -1 && "
            f"sha256sum results/{NAME}/model/*.safetensors"
        )
        done = subprocess.run(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
            capture_output=True,
            text=True,
            env=run_environment(env),
        )
        if done.returncode in (1, 77) and "results" not in done.stderr:
            pytest.skip("no file system can be mounted here")
        assert done.returncode == 0, done.stderr
        limit, *rows = done.stdout.splitlines()
        assert int(limit) <= size + 4096
        assert {r.split("/")[-1]: r.split()[0] for r in rows} == expected


@pytest.mark.slow
class TestInterrupted:
    def test_an_edit_fetches_what_the_changed_shards_read(
        self, server: Any, tmp_path: Path
    ) -> None:
        project = Project(tmp_path / "project")
        project.folder.mkdir()
        write_recipe(project)
        env = environment(server, tmp_path / "home")
        project.configure(sources={}, keep_sources=False)
        project.build(*checks(), env=env, cores=4)
        documents = project.documents()
        rules = documents[-1]["models"][1]["parameters"]["weight"]
        next(r for r in rules if r.get("filter") == "v_proj")["value"][-3] = 0.5
        next(r for r in documents[-1]["models"][0]["parameters"]["weight"]
             if r.get("filter") == "v_proj")["value"][-3] = 0.5  # fmt: skip
        project.write_documents(documents)
        server.log.clear()
        done = project.run(*checks(), env=env, cores=4)
        assert done.returncode == 0, done.stdout
        fetched = {r.path.split("/", 4)[-1] for r in server.requests(r"/_cdn/.*safetensors$")}
        assert 0 < len(fetched) < 12
        assert list((project.folder / "resources").rglob("*.safetensors")) == []


def smallest_budget(project: Any, options: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return what the refusal of a budget says that is needed, in bytes."""
    project.configure(**options, disk_budget="1MB")
    with pytest.raises(UserError) as caught:
        plan_of(project, monkeypatch)
    told = re.search(r"one shard after the other, is (\S+ MB)", str(caught.value))
    return int(parse_size(told[1]) * 1.01)  # it is told in three digits
