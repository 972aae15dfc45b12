"""Checkpoints of any kind: which files they are, how they are locked, what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from helpers.hub_cases import write_weights
from helpers.loopback_hub import LoopbackHub
from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.package.card import base_models
from shardmerge.plan.decide import load_plan
from shardmerge.plan.description import load_description
from shardmerge.recipe.references import parse_reference
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.hub import client
from shardmerge.sources.lock import Lock, LockedSource
from shardmerge.sources.locking import lock_source
from shardmerge.sources.store import Store, StoreContext
from shardmerge.sources.stores import claimant

ROW = [("w", "F16", (2, 3))]
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(name: str, tensors: Any = ROW) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        write_weights(path, tensors)
    else:
        path.write_text(tensors if isinstance(tensors, str) else "{}")


def store(reference: str) -> Store:
    kind = claimant(reference.partition("@")[0])
    assert kind is not None
    context = StoreContext(Path("models"), Identities(Path("cache.json"), keep=False))
    parsed = parse_reference(reference)
    return kind(parsed.path, parsed, context)


def locked(reference: str) -> LockedSource:
    """Return the lock of a checkpoint, as it is read back from a file."""
    found = lock_source(store(reference), "checkpoint")
    lock = Lock.from_json(json.loads(json.dumps(Lock({"x": found}).to_json())), "lock")
    assert lock.sources["x"] == found
    return found


def refused(reference: str) -> str:
    with pytest.raises(UserError) as caught:
        lock_source(store(reference), "checkpoint")
    return str(caught.value)


class TestOneFile:
    def test_its_tensors_and_nothing_beside_it(self) -> None:
        put("lab/a.safetensors")
        put("lab/config.json")
        found = locked("lab/a.safetensors")
        assert (found.kind, list(found.files)) == ("file", ["a.safetensors"])
        assert found.tensors["w"].shape == (2, 3)
        assert found.config == {}

    def test_a_link_is_the_users(self) -> None:
        put("lab/a.safetensors")
        os.symlink("lab/a.safetensors", "b.safetensors")
        assert list(locked("b.safetensors").files) == ["b.safetensors"]

    @pytest.mark.parametrize("tensor", ["unet/w", "2_Dense/w", "a.12345/b", "x y"])
    def test_names_of_tensors_mean_nothing(self, tensor: str) -> None:
        put("a.safetensors", [(tensor, "F16", (1,))])
        assert list(locked("a.safetensors").tensors) == [tensor]

    def test_one_that_is_not_there(self) -> None:
        put("sdxl-base.safetensors")
        told = refused("sdxl-bass.safetensors")
        assert "there is no file 'sdxl-bass.safetensors'" in told
        assert "sdxl-base.safetensors" in told

    @pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.bin"])
    def test_a_pickle(self, name: str) -> None:
        Path(name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
        assert "is a pickle, which is never loaded here" in refused(name)
        assert "allow_pickle: true" in refused(name)
        assert not Path("pwned").exists()

    def test_what_is_no_safetensors_file(self) -> None:
        Path("a.safetensors").write_bytes(b"\x80\x04" + b"x" * 64)
        assert "a.safetensors" in refused("a.safetensors")


class TestFolders:
    def test_all_files_at_the_top(self) -> None:
        put("m/a.safetensors")
        put("m/b.safetensors", [("v", "F32", (1,))])
        put("m/adapter_config.json")
        put("m/README.md")
        found = locked("m")
        assert list(found.files) == ["a.safetensors", "adapter_config.json", "b.safetensors"]
        assert {n: t.file for n, t in found.tensors.items()} == {
            "v": "b.safetensors",
            "w": "a.safetensors",
        }

    def test_one_tensor_twice(self) -> None:
        put("m/a.safetensors")
        put("m/b.safetensors")
        told = refused("m")
        assert "has tensor 'w' both in a.safetensors and in b.safetensors" in told
        assert "Name the one file that you mean" in told

    def test_components(self) -> None:
        put("p/model_index.json")
        put("p/everything-in-one.safetensors")
        put("p/unet/diffusion_pytorch_model.safetensors")
        put("p/unet/diffusion_pytorch_model.fp16.safetensors")
        put("p/unet/config.json")
        put("p/text_encoder/model.safetensors")
        put("p/tokenizer/vocab.json")
        put("p/my own/notes.json")
        put("p/.cache/x.json")
        found = locked("p")
        assert list(found.files) == [
            "model_index.json",
            "text_encoder/model.safetensors",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
        ]
        assert list(found.tensors) == ["text_encoder/w", "unet/w"]

    def test_a_component_in_shards(self) -> None:
        names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for tensor, name in zip("vw", names, strict=True):
            put(f"p/transformer/{name}", [(tensor, "F16", (2,))])
        weight_map = dict(zip("vw", names, strict=True))
        put(f"p/transformer/{INDEX}", json.dumps({"weight_map": weight_map}))
        assert list(locked("p").tensors) == ["transformer/v", "transformer/w"]
        assert f"transformer/{INDEX}" not in locked("p").files
        Path("p/transformer", names[1]).unlink()
        assert "which is not there" in refused("p")

    def test_an_index_that_leads_out(self) -> None:
        put("secret.safetensors")
        put("p/unet/diffusion_pytorch_model-00001-of-00002.safetensors")
        weight_map = {"w": "../../secret.safetensors"}
        put(f"p/unet/{INDEX}", json.dumps({"weight_map": weight_map}))
        assert "is not a plain path within the model" in refused("p")

    def test_a_file_that_is_a_link_out(self) -> None:
        put("secret.safetensors")
        Path("m").mkdir()
        os.symlink("../secret.safetensors", "m/model.safetensors")
        assert "is a link out of the model's folder" in refused("m")

    def test_one_part_alone(self) -> None:
        """A folder is a folder, however few files it has: its part keeps its name."""
        file = "unet/diffusion_pytorch_model.safetensors"
        put(f"p/{file}")
        found = locked("p")
        assert list(found.tensors) == ["unet/w"] and not found.one_file
        assert found.folder_of(file) == "unet"
        again = Lock.from_json(Lock({"p": found}).to_json(), "r.lock.json").sources["p"]
        assert again == found
        alone = locked(f"p/{file}")
        assert list(alone.tensors) == ["w"] and alone.one_file

    def test_variants_alone(self) -> None:
        put("p/unet/diffusion_pytorch_model.fp16.safetensors")
        told = refused("p")
        assert "neither unet/model.safetensors or unet/diffusion" in told
        assert "(unet/diffusion_pytorch_model.fp16.safetensors)" in told

    def test_pickles_alone(self) -> None:
        put("p/unet/diffusion_pytorch_model.bin")
        told = refused("p")
        assert "has the weights of its folder 'unet' only as a pickle" in told

    def test_nothing(self) -> None:
        put("m/config.json")
        assert "has no safetensors files" in refused("m")


@pytest.mark.parametrize("file", ["model.safetensors", "one.safetensors"])
def test_a_checkpoint_in_place_of_a_model(file: str) -> None:
    put(f"m/{file}")
    with pytest.raises(UserError, match="Write `tensors: same` into the document"):
        lock_source(store("m"), "model")


class TestLocks:
    @pytest.fixture
    def lock(self) -> dict[str, Any]:
        put("p/unet/model.safetensors")
        return Lock({"x": locked("p")}).to_json()

    def told(self, lock: dict[str, Any]) -> str:
        with pytest.raises(UserError) as caught:
            Lock.from_json(lock, "r.lock.json")
        return str(caught.value)

    def test_a_configuration_is_refused(self, lock: dict[str, Any]) -> None:
        lock["sources"]["x"]["config"] = {"model_type": "llama"}
        assert "does not go with `role: checkpoint`" in self.told(lock)

    def test_an_unknown_role_is_refused(self, lock: dict[str, Any]) -> None:
        lock["sources"]["x"]["role"] = ["model"]
        assert "is none of `model`, `adapter` and `checkpoint`" in self.told(lock)

    def test_one_file_of_many_is_refused(self, lock: dict[str, Any]) -> None:
        source = lock["sources"]["x"]
        for wrong in ("yes", 1, []):
            assert "goes with `role: checkpoint`" in self.told(
                lock | {"sources": {"x": source | {"one_file": wrong}}}
            )
        files = source["files"]
        files["vae/config.json"] = {"size": 2, "sha256": "0" * 64}
        source["one_file"] = True
        assert "and one file alone" in self.told(lock)

    def test_a_file_that_leads_out_is_refused(self, lock: dict[str, Any]) -> None:
        files = lock["sources"]["x"]["files"]
        files["../../x.safetensors"] = files.pop("unet/model.safetensors")
        assert "is not a plain path" in self.told(lock)

    @pytest.mark.parametrize("repo", ["o/m:../../x", "o/m:x.safetensors"])
    def test_a_repository_with_a_file_is_refused(self, lock: dict[str, Any], repo: str) -> None:
        source = lock["sources"]["x"]
        source |= {"kind": "hub", "repo": repo, "commit": "0" * 40}
        assert f"{repo!r} is no repository's `owner/name`" in self.told(lock)


class TestHub:
    @pytest.fixture
    def served(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(client, "pause", lambda seconds: None)
        for name in ("unet/diffusion_pytorch_model.safetensors", "loras/a.safetensors"):
            put(f"hub/o/p/{name}")
        put("hub/o/p/model_index.json")
        put("hub/o/p/README.md", "# A pipeline\n")
        with LoopbackHub(tmp_path / "hub") as server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            yield server

    def test_a_file_of_a_repository(self, served: LoopbackHub) -> None:
        found = locked("o/p:loras/a.safetensors")
        assert (found.kind, found.repo, found.revision) == ("hub", "o/p", None)
        assert list(found.files) == ["loras/a.safetensors"]
        assert list(found.tensors) == ["w"]
        again = Lock.from_json(Lock({"x": found}).to_json(), "r.lock.json").sources["x"]
        assert again == found and again.folder_of("loras/a.safetensors") == ""

    def test_it_is_fetched_and_merged_with_a_file_of_this_machine(
        self, served: LoopbackHub
    ) -> None:
        put("mine.safetensors")
        models = [
            {"model": name, "parameters": {"weight": 0.5}}
            for name in ("o/p:loras/a.safetensors", "mine.safetensors")
        ]
        Path("r.yaml").write_text(json.dumps({"merge_method": "linear", "models": models}))
        plan = load_plan(load_settings({"recipes": ["r.yaml"]}), say=lambda line: None)
        ((path, job),) = plan.fetches.items()
        assert (job.repo, job.file) == ("o/p", "loras/a.safetensors")
        assert plan.builds["r"].shards[0].sources == (path, "mine.safetensors")
        description = load_description(plan.builds["r"].digest)
        assert list(description.shards[0].tensors) == ["w"]
        assert base_models(description) == ["o/p"]

    def test_at_a_revision(self, served: LoopbackHub) -> None:
        found = locked("o/p:loras/a.safetensors@main")
        assert (found.repo, found.revision) == ("o/p", "main")
        path = store("o/p:loras/a.safetensors@main").path("loras/a.safetensors", found.origin)
        assert path == f"models/o--p@{found.commit}/loras/a.safetensors"

    def test_one_that_is_not_there(self, served: LoopbackHub) -> None:
        told = refused("o/p:loras/b.safetensors")
        assert "has no file 'loras/b.safetensors'" in told
        assert "Did you mean 'loras/a.safetensors'?" in told

    @pytest.mark.parametrize("file", ["../../x.safetensors", "/etc/x.safetensors", "a/../x.pt"])
    def test_one_that_leads_out(self, served: LoopbackHub, file: str) -> None:
        assert "is not a plain path within the model" in refused(f"o/p:{file}")
        assert not served.requests("/resolve/")
