"""A model, a compressed form and an adapter of it: published by one run, signed, checked after."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.hub_cases import SCRIPTS, WRITER, environment
from helpers.loopback_hub import LoopbackHub
from helpers.models import llama
from helpers.workflow import Project

pytestmark = pytest.mark.slow
pytest.importorskip("compressed_tensors")
pytest.importorskip("model_signing")

RECIPE = """\
name: tiny
merge_method: linear
models:
  - {model: models/base, parameters: {weight: 0.5}}
  - {model: models/tuned, parameters: {weight: 0.5}}
dtype: float16
---
name: tiny-lora
extract_lora:
  model: tiny
  base_model: models/base
  rank: 4
"""
REPOSITORIES = ("tiny", "tiny-FP8-DYNAMIC", "tiny-lora")
DOWNLOAD = """\
import sys
from huggingface_hub import hf_hub_download
repo, folder, *names = sys.argv[1:]
for name in names:
    hf_hub_download(repo, name, revision="v1.0", local_dir=folder)
"""


def make_project(folder: Path) -> Project:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    for seed, name in enumerate(("base", "tuned")):
        llama(folder / "sources" / name, seed, layers=2)
    key = ec.generate_private_key(ec.SECP256R1())
    private = (form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*private))
    public = (form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(key.public_key().public_bytes(*public))
    project = Project(folder)
    project.recipe.write_text(RECIPE.replace("models/", f"{folder}/sources/"))
    project.configure(
        sources={},
        stages=["tiny", "final"],
        exports={"compressed": {"schemes": ["fp8-dynamic"]}},
        publish={
            "repository": "writer/{name}",
            "branch": "dev",
            "tag": "v1.0",
            "collection": "My merges",
            "sign": {"key": "key.pem"},
        },
    )
    return project


def front_matter(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_all_forms_of_a_model(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.writers.add(WRITER)
        env = environment(hub, tmp_path / "home", WRITER)
        shown = project.run("preview", env=env)
        assert shown.returncode == 0, shown.stdout
        assert "of 3 folders; nothing is uploaded" in shown.stdout
        assert not hub.requests("", "POST") and not list((tmp_path / "hub").iterdir())
        project.build("publish", env=env)
        results = tmp_path / "results"
        receipts = [results / "tiny" / "published.json"]
        receipts.append(results / "tiny" / "exports" / "fp8-dynamic.published.json")
        receipts.append(results / "tiny-lora" / "published.json")
        (collection,) = hub.collections.values()
        named = {item["id"] for item in collection["items"]}
        assert named == {f"writer/{name}" for name in REPOSITORIES}
        for name, path in zip(REPOSITORIES, receipts, strict=True):
            receipt = json.loads(path.read_text())
            assert len(receipt["commit"]) == 40 and receipt["tag"] == "v1.0", receipt
            words = [f"writer/{name}", tmp_path / "got" / name, *receipt["files"]]
            subprocess.run([sys.executable, "-c", DOWNLOAD, *words], env=env, check=True)
    compare(tmp_path)


def compare(tmp_path: Path) -> None:
    """Read the cards of what was downloaded, and verify it as it came and after it was changed."""
    model, export, adapter = (tmp_path / "got" / name for name in REPOSITORIES)
    card = (model / "README.md").read_text()
    assert "writer/tiny-FP8-DYNAMIC" in card and "writer/tiny-lora" in card
    named = {key: front_matter(export)[key] for key in ("base_model", "base_model_relation")}
    assert named == {"base_model": "writer/tiny", "base_model_relation": "quantized"}
    for folder in (model, adapter):  # made of folders of this machine
        assert not {"base_model", "base_model_relation"} & set(front_matter(folder))
    told = json.loads((adapter / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "base"

    checked = verify(tmp_path, model, export, adapter)
    assert [done.returncode for done in checked] == [0] * 3, checked
    assert all("files signed by the key" in done.stdout for done in checked)
    other = tmp_path / "other"
    shutil.copytree(export, other)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (model / "pytorch_model.bin").write_bytes(b"x")
    (adapter / "model.sig").write_bytes((export / "model.sig").read_bytes())
    wrong = verify(tmp_path, other, model, adapter)
    assert [done.returncode for done in wrong] == [1] * 3, wrong


def verify(folder: Path, *given: Path) -> list[subprocess.CompletedProcess[str]]:
    command = [sys.executable, "-m", "shardmerge", "verify", "--key", str(folder / "key.pub")]
    options = {"cwd": folder, "env": {"PYTHONPATH": str(SCRIPTS)}, "text": True}
    return [subprocess.run([*command, one], capture_output=True, **options) for one in given]
