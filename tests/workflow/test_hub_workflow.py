"""The flagship recipe word for word from a loopback Hub: locked, fetched, merged, published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_cases import READER, WRITER, environment
from loopback_hub import LoopbackHub
from models import llama
from workflow_helpers import FILES, FINETUNED, NAME, Project


@pytest.fixture
def local(tmp_path) -> Project:
    project = Project.create(tmp_path / "local")
    project.build()
    return project


@pytest.fixture
def hub(local, tmp_path):
    root = tmp_path / "hub"
    for name in FILES:
        shutil.copytree(local.folder / "models" / name, root / name)
    with LoopbackHub(root) as server:
        server.writers.add(WRITER)
        yield server


@pytest.fixture
def project(local, tmp_path) -> Project:
    project = Project(tmp_path / "remote")
    project.folder.mkdir()
    project.recipe.write_text(local.recipe.read_text())
    project.configure(sources={}, keep_sources=False)
    return project


class TestFromTheHub:
    def test_lock_fetch_merge(self, local, hub, project, tmp_path):
        env = environment(hub, tmp_path / "home", READER)
        project.build(env=env)
        assert project.shards() == local.shards()

        fetched = {r.path.rsplit("/", 1)[-1] for r in hub.requests(r"/resolve/.*safetensors$")}
        assert fetched  # header requests and downloads go through the same address
        lock = json.loads((project.folder / "recipe.lock.json").read_text())
        assert {s["kind"] for s in lock["sources"].values()} == {"hub"}
        assert all(len(s["commit"]) == 40 for s in lock["sources"].values())

        left = list((project.folder / "resources").rglob("*.safetensors"))
        assert left == []  # keep_sources: false

    def test_locked_needs_no_network(self, hub, project, tmp_path):
        project.build(env=environment(hub, tmp_path / "home"))
        dead = environment(hub, tmp_path / "home") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
        done = project.run("-n", "--until", "merge_shard", env=dead)
        assert done.returncode == 0, done.stdout

    def test_needless_files_are_never_fetched(self, hub, project, tmp_path):
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

    def test_gone_repository_is_one_sentence(self, hub, project, tmp_path):
        text = project.recipe.read_text().replace("152334H/miqu", "152334H/mique")
        project.recipe.write_text(text)
        done = project.run("-n", env=environment(hub, tmp_path / "home"))
        assert done.returncode != 0
        line = text.split("152334H/mique")[0].count("\n") + 1
        assert f"recipe.yaml:{line}: 152334H/mique" in done.stdout
        assert "Traceback" not in done.stdout

    def test_no_token_anywhere(self, hub, project, tmp_path):
        project.build(env=environment(hub, tmp_path / "home", READER))
        for path in project.folder.rglob("*"):
            assert not path.is_file() or READER.encode() not in path.read_bytes(), path


@pytest.mark.slow
class TestPublish:
    def test_whole_way(self, hub, project, tmp_path):
        env = environment(hub, tmp_path / "home", WRITER)
        project.configure(sources={}, publish={"repository": "writer/{name}"})
        project.build("publish", env=env)
        receipt = json.loads((project.folder / f"results/{NAME}/published.json").read_text())
        assert receipt
        uploaded = {p.name for p in (Path(hub.store.root) / "writer" / NAME).rglob("*")}
        assert {"config.json", "README.md", "SHA256SUMS", "provenance.json"} <= uploaded
        assert all(p.name in uploaded for p in project.folder.glob(f"results/{NAME}/model/*"))
