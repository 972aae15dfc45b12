"""Checkpoints that are no language models, merged by the real Snakefile: files, a pipeline."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.hub_cases import WRITER, environment
from helpers.loopback_hub import LoopbackHub
from helpers.pickle_cases import Trap
from helpers.workflow import Project
from shardmerge.base.errors import UserError
from shardmerge.package.uploads import list_uploads

STEM = "diffusion_pytorch_model"
KOHYA = "lora_unet_down_blocks_0_attentions_0_proj_in"
#: Of a pipeline: each file's tensors.
PARTS = {
    f"unet/{STEM}-00001-of-00002.safetensors": {"conv_in.weight": (8, 4, 3, 3)},
    f"unet/{STEM}-00002-of-00002.safetensors": {"conv_out.weight": (4, 8, 3, 3)},
    f"vae/{STEM}.safetensors": {"conv_in.weight": (6, 3), "conv_in.bias": (6,)},
    "text_encoder/model.safetensors": {"text_model.embeddings.token_embedding.weight": (9, 4)},
}
SMALL = ("model_index.json", "unet/config.json", "vae/config.json", "tokenizer/vocab.json")


def random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def pipeline(folder: Path, seed: int) -> None:
    for number, (file, shapes) in enumerate(PARTS.items()):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_file({n: random(s, 100 * seed + number) for n, s in shapes.items()}, folder / file)
    table = {n: Path(f).name for f, own in PARTS.items() if "-of-" in f for n in own}
    (folder / f"unet/{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    for name in SMALL:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"is": name}))


def lora(seed: int) -> dict[str, torch.Tensor]:
    return {
        f"{KOHYA}.lora_up.weight": random((8, 2), seed),
        f"{KOHYA}.lora_down.weight": random((2, 8), seed + 1),
        f"{KOHYA}.alpha": torch.tensor(2.0),
        "bn.num_batches_tracked": torch.tensor(11),
    }


def document(name: str, method: str, *models: str, **more: Any) -> dict[str, Any]:
    rows = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return {"name": name, "merge_method": method, "models": rows} | more


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two LoRA files, one of them a pickle of a training; two pipelines."""
    project = Project(tmp_path_factory.mktemp("checkpoints"))
    models = project.folder / "models"
    for seed in (1, 2):
        pipeline(models / f"pipe{seed}", seed)
    save_file(lora(10) | {"extra": random((3,), 5)}, models / "one.safetensors")
    torch.save({"state_dict": lora(20), "epoch": 3}, models / "two.ckpt")
    documents = [
        document("loras", "ties", "models/two.ckpt", "models/one.safetensors", tensors="union"),
        document("pipe", "linear", "./models/pipe1", "./models/pipe2", tensors="same"),
    ]
    documents[0] |= {"base_model": "models/one.safetensors", "parameters": {"density": 0.5}}
    project.write_documents(documents)
    config = {"recipes": ["recipe.yaml"], "allow_pickle": True}
    (project.folder / "cfg.yaml").write_text(yaml.safe_dump(config))
    project.build("convert")
    project.build("all")
    return project


def made(project: Project, name: str) -> Path:
    return project.folder / "results" / name / "model"


@pytest.mark.slow
class TestWorkflow:
    def test_a_pipeline_is_merged_part_by_part(self, project: Project) -> None:
        for file, shapes in PARTS.items():
            found = load_file(made(project, "pipe") / file)
            one, two = (load_file(project.folder / f"models/pipe{i}/{file}") for i in (1, 2))
            assert found.keys() == shapes.keys()
            for name in shapes:
                mean = (one[name].float() + two[name].float()) / 2
                assert torch.equal(found[name], mean.half()), (file, name)

    def test_its_other_files_come_along(self, project: Project) -> None:
        for name in SMALL:
            source = project.folder / "models/pipe1" / name
            assert (made(project, "pipe") / name).read_bytes() == source.read_bytes()
        index = json.loads(
            (made(project, "pipe") / f"unet/{STEM}.safetensors.index.json").read_text()
        )
        for tensor, file in index["weight_map"].items():
            with safe_open(made(project, "pipe") / "unet" / file, "pt") as opened:
                assert tensor in opened.keys()  # noqa: SIM118
        assert not (made(project, "pipe") / "config.json").exists()

    def test_files_are_merged_into_a_file(self, project: Project) -> None:
        found = load_file(made(project, "loras") / "model.safetensors")
        assert found.keys() == {*lora(0), "extra"}
        assert found["bn.num_batches_tracked"] == 11
        assert found[f"{KOHYA}.alpha"].shape == ()
        source = load_file(project.folder / "models/one.safetensors")
        assert torch.equal(found["extra"], source["extra"])
        name = f"{KOHYA}.lora_up.weight"
        assert not torch.equal(found[name], source[name])

    @pytest.mark.parametrize("name", ["pipe", "loras"])
    def test_all_that_is_told_of_them(self, project: Project, name: str) -> None:
        folder = made(project, name)
        verified = json.loads((folder.parent / "verify.json").read_text())
        assert verified["passed"] is True
        assert verified["tensors"] == {"pipe": 5, "loras": 5}[name]
        assert not (folder.parent / "loaded.json").exists()
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["checkpoint"] is True and "tokenizer" not in provenance
        card = (folder / "README.md").read_text()
        assert "No program was tried on it" in card and "transformers" not in card
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            sha256, _, file = line.partition("  ")
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha256
        uploads, left_out = list_uploads(folder)
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert ({upload.name for upload in uploads}, left_out) == (files, [])
        page = (folder.parent / "report" / "summary.html").read_text()
        assert "A checkpoint that was merged by the names of its tensors" in page

    def test_strange_weights_are_not_uploaded(self, project: Project, tmp_path: Path) -> None:
        folder = shutil.copytree(made(project, "pipe"), tmp_path / "model")
        save_file(lora(1), folder / "vae" / "more.safetensors")
        with pytest.raises(UserError, match="does not list"):
            list_uploads(folder)
        (folder / "vae" / "more.safetensors").rename(folder / f"vae/{STEM}.safetensors")
        (folder / "unet" / f"{STEM}-00002-of-00002.safetensors").unlink()
        with pytest.raises(UserError, match="lacks unet/"):
            list_uploads(folder)

    def test_they_are_published_though_nothing_loads_them(
        self, project: Project, tmp_path: Path
    ) -> None:
        own = project.copy(tmp_path / "own")
        config = yaml.safe_load((own.folder / "cfg.yaml").read_text())
        config["publish"] = {"repository": "writer/{name}"}
        (own.folder / "cfg.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "hub").mkdir()
        with LoopbackHub(tmp_path / "hub") as hub:
            hub.writers.add(WRITER)
            own.build("publish", env=environment(hub, tmp_path / "home", WRITER))
        for name in ("pipe", "loras"):
            folder = made(own, name)
            receipt = json.loads((folder.parent / "published.json").read_text())
            assert "README.md" in receipt["files"] and len(receipt["commit"]) == 40
            assert not (folder.parent / "loaded.json").exists()

    def test_a_second_run_has_nothing_to_do(self, project: Project) -> None:
        assert project.pending("all") == []

    def test_a_lost_shard_alone_is_made_again(self, project: Project) -> None:
        lost = made(project, "pipe") / f"unet/{STEM}-00002-of-00002.safetensors"
        before = lost.read_bytes()
        lost.unlink()
        assert project.pending_shards() == {lost.name}
        project.build("all")
        assert lost.read_bytes() == before


@pytest.mark.slow
def test_a_pickle_that_would_run_a_program(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    models = project.folder / "models"
    models.mkdir(parents=True)
    save_file(lora(1), models / "one.safetensors")
    torch.save({"state_dict": lora(2), "callback": Trap(tmp_path / "pwned")}, models / "two.ckpt")
    project.write_documents(
        [document("out", "linear", "models/one.safetensors", "models/two.ckpt")]
    )
    config = {"recipes": ["recipe.yaml"], "allow_pickle": True}
    (project.folder / "cfg.yaml").write_text(yaml.safe_dump(config))
    told = project.run("convert")
    assert told.returncode and "holds more than tensors" in told.stdout
    config["allow_pickle"] = False
    (project.folder / "cfg.yaml").write_text(yaml.safe_dump(config))
    told = project.run("-n")
    assert told.returncode and "is a pickle, which is never loaded here" in told.stdout
    assert not (tmp_path / "pwned").exists()
