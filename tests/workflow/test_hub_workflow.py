"""The flagship recipe word for word from a loopback Hub: locked, fetched, merged, published."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_cases import READER, WRITER, environment, files_with, wait_until
from helpers.loopback_hub import LoopbackHub
from helpers.models import llama
from helpers.workflow import FILES, FINETUNED, NAME, Project
from helpers.workflow import environment as run_environment


@pytest.fixture
def hub(flagship: Project, tmp_path: Path) -> Iterator[Any]:
    root = tmp_path / "hub"
    for name in FILES:
        shutil.copytree(flagship.folder / "models" / name, root / name)
    with LoopbackHub(root) as server:
        server.writers.add(WRITER)
        yield server


@pytest.fixture
def project(flagship: Project, tmp_path: Path) -> Project:
    project = Project(tmp_path / "remote")
    project.folder.mkdir()
    project.recipe.write_text(flagship.recipe.read_text())
    project.configure(sources={}, keep_sources=False)
    return project


class TestFromTheHub:
    def test_lock_fetch_merge(
        self, flagship: Project, hub: LoopbackHub, project: Project, tmp_path: Path
    ) -> None:
        """One of the three is gated; its token is seen nowhere."""
        gated = {"gated": True, "readers": [READER]}
        (hub.store.root / FINETUNED / ".hub.json").write_text(json.dumps(gated))
        refused = project.run("-n", env=environment(hub, tmp_path / "home"))
        assert f"Visit {hub.url}/{FINETUNED}, accept its terms" in refused.stdout
        with CommandLines() as seen:
            done = project.run(
                "--until", "merge_shard", env=environment(hub, tmp_path / "home", READER)
            )
        assert done.returncode == 0, done.stdout
        assert project.shards() == flagship.shards()
        assert any("fetch.py" in line for line in seen.lines)
        assert READER not in done.stdout + "".join(seen.lines)
        assert files_with(READER, project.folder, tmp_path / "home") == []

        fetched = {r.path.rsplit("/", 1)[-1] for r in hub.requests(r"/resolve/.*safetensors$")}
        assert fetched  # header requests and downloads go through the same address
        lock = json.loads((project.folder / "recipe.lock.json").read_text())
        assert {s["kind"] for s in lock["sources"].values()} == {"hub"}
        assert all(len(s["commit"]) == 40 for s in lock["sources"].values())

        left = list((project.folder / "resources").rglob("*.safetensors"))
        assert left == []  # keep_sources: false

        # locked, it needs no network
        dead = environment(hub, tmp_path / "home") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
        done = project.run("-n", "--until", "merge_shard", env=dead)
        assert done.returncode == 0, done.stdout

    def test_needless_files_are_never_fetched(
        self, hub: LoopbackHub, project: Project, tmp_path: Path
    ) -> None:
        shutil.rmtree(tmp_path / "hub" / FINETUNED)
        llama(tmp_path / "hub" / FINETUNED, seed=2, layers=11, files=10)
        project.configure(sources={})
        project.build(env=environment(hub, tmp_path / "home"))
        models = project.folder / "resources/models"
        have = {p.name for p in models.rglob("*-of-00010.safetensors")}
        # The first and last layers of the fine-tuned model have no weight.
        assert "model-00001-of-00010.safetensors" not in have
        assert "model-00010-of-00010.safetensors" not in have
        assert "model-00005-of-00010.safetensors" in have

    def test_gone_repository_is_one_sentence(
        self, hub: LoopbackHub, project: Project, tmp_path: Path
    ) -> None:
        text = project.recipe.read_text().replace("152334H/miqu", "152334H/mique")
        project.recipe.write_text(text)
        done = project.run("-n", env=environment(hub, tmp_path / "home"))
        assert done.returncode != 0
        line = text.split("152334H/mique")[0].count("\n") + 1
        assert f"recipe.yaml:{line}: 152334H/mique" in done.stdout
        assert "Traceback" not in done.stdout


class CommandLines(threading.Thread):
    """Collects the command lines of all processes while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.lines, self._over = set(), threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.01):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.lines.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self.join()


@pytest.mark.slow
class TestTwoWorkflows:
    def test_on_one_folder_of_models_fetch_every_file_once(
        self, hub: Any, project: Any, tmp_path: Path
    ) -> None:
        """The second is slower, so that it comes to files that the first has brought meanwhile."""
        project.configure(sources={})
        other = project.copy(tmp_path / "other")
        env = environment(hub, tmp_path / "home")
        for one in (project, other):
            assert one.run("lock", env=env).returncode == 0
        shared = tmp_path / "shared"
        shared.mkdir()
        for one in (project, other):
            (one.folder / "resources").mkdir(exist_ok=True)
            (one.folder / "resources" / "models").symlink_to(shared)
        hub.log.clear()
        hub.fault("/_cdn/.*-of-00005.safetensors", "pause", after=100)
        running, logs = [], [tmp_path / "other.log", tmp_path / "project.log"]
        for one, cores, log in zip((other, project), (1, 4), logs, strict=True):
            with open(log, "w") as file:
                process = subprocess.Popen(
                    one.command("--until", "merge_shard", cores=cores),
                    cwd=one.folder,
                    env=run_environment(env),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            running.append(process)
            wait_until(lambda: len(hub.requests("/_cdn/")) > 0, process)
        # The first waits for the file that is held; the second brings what it can meanwhile.
        wait_until(lambda: len(list(shared.rglob("model-*.safetensors"))) >= 3)
        brought = {path: path.stat() for path in shared.rglob("model-*.safetensors")}
        hub.release()
        codes = [process.wait() for process in running]
        assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
        for path, before in brought.items():  # the other, which may be reading it, sees no change
            assert path.stat().st_mtime_ns == before.st_mtime_ns, path
        assert project.shards() == other.shards() != {}
        sent = Counter(r.path for r in hub.requests(r"/_cdn/.*safetensors$"))
        assert set(sent.values()) == {1}, sent


@pytest.mark.slow
class TestPublish:
    def test_whole_way(self, hub: Any, project: Any, tmp_path: Path) -> None:
        env = environment(hub, tmp_path / "home", WRITER)
        project.configure(sources={}, publish={"repository": "writer/{name}"})
        dry = project.run("-n", "publish", env=env)
        assert f"results/{NAME}/model to the private repository writer/{NAME}" in dry.stdout
        assert hub.requests("", "POST") == []
        with CommandLines() as seen:
            project.build("publish", env=env)
        assert any("publish.py" in line for line in seen.lines)
        assert WRITER not in "".join(seen.lines)
        assert files_with(WRITER, project.folder, tmp_path / "home") == []
        assert json.loads((hub.store.root / "writer" / NAME / ".hub.json").read_text()) == {
            "private": True
        }
        receipt = json.loads((project.folder / f"results/{NAME}/published.json").read_text())
        assert receipt
        uploaded = {p.name for p in (Path(hub.store.root) / "writer" / NAME).rglob("*")}
        assert {"config.json", "README.md", "SHA256SUMS", "provenance.json"} <= uploaded
        assert all(p.name in uploaded for p in project.folder.glob(f"results/{NAME}/model/*"))
