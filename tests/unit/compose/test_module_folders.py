"""Folders of modules with weights of their own, as sentence-transformers saves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.built_model import Built, flip, merge, verify
from helpers.models import llama_shapes, random_tensors, save_model
from helpers.planned import described, slices
from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.base.weightfolders import folder_of, own_name, shard_name
from shardmerge.package.index import checksums, load_records
from shardmerge.package.uploads import list_uploads
from shardmerge.plan.paths import check_record_path, record_of_check, record_path
from shardmerge.sources.locking import lock_folder

DENSE = "2_Dense"
HEAD = {"linear.weight": (4, 16), "linear.bias": (4,)}


def encoder(name: str, seed: int, **folders: dict[str, tuple[int, ...]]) -> Path:
    """Write a model with these folders of weights."""
    folder = save_model(Path(name), random_tensors(llama_shapes(3), seed), 2)
    paths = ["1_Pooling", *folders]
    modules = [{"idx": i, "name": str(i), "path": p, "type": p} for i, p in enumerate(["", *paths])]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps({"of": path}))
    for i, (path, shapes) in enumerate(folders.items(), 1):
        own = random_tensors(shapes, 100 * i + seed, torch.float32)
        save_file(own, folder / path / "model.safetensors")
    return folder


def recipe(method: str = "linear", **values: Any) -> dict[str, Any]:
    rows = [{"model": m, "parameters": {"weight": w}} for m, w in (("a", 0.25), ("b", 0.75))]
    return {"name": "out", "merge_method": method, "models": rows, "dtype": "float32"} | values


def built(document: dict[str, Any] | None = None, **config: Any) -> Built:
    return merge(json.dumps(document or recipe()), **config)


def told(*documents: dict[str, Any]) -> list[str]:
    return [line for line in described(*documents)[1] if "[module-folders]" in line]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoder("a", 1, **{DENSE: HEAD})
    encoder("b", 2, **{DENSE: HEAD})


class TestNames:
    @pytest.mark.parametrize("name", ["2_Dense/x", "query_0_Transformer/x", "0_WordEmbeddings/a/b"])
    def test_of_a_folder(self, name: str) -> None:
        folder, _, rest = name.partition("/")
        assert (folder_of(name), own_name(name, folder)) == (folder, rest)

    @pytest.mark.parametrize("name", ["x", "unet/x", "2_Dense", "2_/x", "../x", "2_De nse/x", "/x"])
    def test_of_none(self, name: str) -> None:
        assert (folder_of(name), own_name(name, "")) == ("", name)

    @pytest.mark.parametrize("path", [record_path, check_record_path])
    def test_records_lie_as_the_shards_do(self, path: Any) -> None:
        shard = f"results/1_model/model/{DENSE}/model.safetensors"
        kind = path(shard).split("/")[2]
        assert path(shard) == f"results/1_model/{kind}/{DENSE}/model.json"
        assert shard_name(path(shard)) == f"{DENSE}/model.safetensors"
        assert record_of_check(path(shard)) == record_path(shard)


class TestLocks:
    def test_tensors_are_known_by_their_folder(self) -> None:
        locked = lock_folder(Path("a"), "a", Identities(Path("cache.json")))
        found = {n: t.file for n, t in locked.tensors.items() if folder_of(n)}
        assert found == dict.fromkeys(
            (f"{DENSE}/linear.bias", f"{DENSE}/linear.weight"), f"{DENSE}/model.safetensors"
        )

    def test_a_pickle_is_refused_with_a_way_out(self) -> None:
        Path("a", DENSE, "model.safetensors").rename(Path("a", DENSE, "pytorch_model.bin"))
        with pytest.raises(UserError, match="'2_Dense' only as a pickle") as caught:
            described(recipe())
        assert "save it again" in caught.value.hint

    def test_an_index_may_not_name_their_weights(self) -> None:
        index = Path("a", "model.safetensors.index.json")
        content = json.loads(index.read_text())
        content["weight_map"]["linear.weight"] = f"{DENSE}/model.safetensors"
        index.write_text(json.dumps(content))
        with pytest.raises(UserError, match="is of a folder of its own"):
            described(recipe())

    def test_a_tensor_may_not_look_like_one_of_theirs(self) -> None:
        path = Path("a", DENSE, "model.safetensors")
        save_file({"3_Dense/linear.weight": torch.ones(2)}, path)
        with pytest.raises(UserError, match="as if it were of the folder '3_Dense'"):
            described(recipe())


class TestBothHaveThem:
    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    def test_they_are_merged_and_verified(self, numerics: str) -> None:
        out = built(numerics=numerics)
        assert verify(out).shards == len(out.build.shards) == 3
        parts = [load_file(Path(m, DENSE, "model.safetensors")) for m in "ab"]
        merged = load_file(out.folder / DENSE / "model.safetensors")
        assert merged.keys() == HEAD.keys()
        for name, tensor in merged.items():
            expected = 0.25 * parts[0][name].double() + 0.75 * parts[1][name].double()
            torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
        index = json.loads((out.folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(llama_shapes(3))
        assert told(recipe()) == []

    def test_a_damaged_one_is_found(self) -> None:
        out = built()
        flip(out.folder / DENSE / "model.safetensors", -1)
        with pytest.raises(UserError, match=r"2_Dense/model\.safetensors"):
            verify(out)

    def test_a_stranger_beside_it_is_found(self) -> None:
        out = built()
        shutil.copytree(out.folder / DENSE, out.folder / "3_Dense")
        with pytest.raises(UserError, match="not part of this model"):
            verify(out)

    def test_checksums_and_uploads_have_it(self) -> None:
        out = built()
        files = [out.folder / name for name in out.build.files]
        sums = checksums(out.folder, files, load_records(out.records()))
        for name in (f"{DENSE}/model.safetensors", f"{DENSE}/config.json", "1_Pooling/config.json"):
            assert f"  {name}\n" in sums
            assert name in [upload.name for upload in list_uploads(out.folder)[0]]

    @pytest.mark.parametrize("deltas", ["fuse", "store"])
    def test_task_vectors(self, deltas: str) -> None:
        document = recipe("task_arithmetic", base_model="a")
        out = built(document, deltas=deltas)
        verify(out)
        a, b = (load_file(Path(m, DENSE, "model.safetensors"))["linear.weight"] for m in "ab")
        merged = load_file(out.folder / DENSE / "model.safetensors")["linear.weight"]
        torch.testing.assert_close(merged, a + 0.75 * (b - a), atol=1e-6, rtol=1e-5)

    def test_a_filter_can_name_the_folder(self) -> None:
        for row, weights in zip((document := recipe())["models"], ((0, 1), (1, 0)), strict=True):
            row["parameters"]["weight"] = [
                {"filter": f"{DENSE}/", "value": weights[0]},
                {"value": weights[1]},
            ]
        out = built(document)
        b = load_file(Path("b", DENSE, "model.safetensors"))
        merged = load_file(out.folder / DENSE / "model.safetensors")
        assert all(torch.equal(merged[name], b[name]) for name in HEAD)

    def test_documents_pass_them_on(self) -> None:
        first = recipe(name="first")
        rows = [{"model": m, "parameters": {"weight": 0.5}} for m in ("first", "b")]
        out = built_of(first, recipe(models=rows))
        a, b = (load_file(Path(m, DENSE, "model.safetensors"))["linear.weight"] for m in "ab")
        merged = load_file(out.folder / DENSE / "model.safetensors")["linear.weight"]
        torch.testing.assert_close(merged, 0.125 * a + 0.875 * b, atol=1e-6, rtol=1e-5)

    def test_slices_leave_them_beside_the_config_that_they_fit(self) -> None:
        out = built(slices(("a", 0, 2), ("b", 0, 3)))
        verify(out)
        merged = load_file(out.folder / DENSE / "model.safetensors")["linear.weight"]
        a = load_file(Path("a", DENSE, "model.safetensors"))["linear.weight"]
        assert torch.equal(merged, a.half())


class TestOnlySomeHaveThem:
    def test_the_bases_are_kept(self) -> None:
        encoder("b", 2)
        shutil.rmtree(Path("b", DENSE))
        out = built(recipe(base_model="a"))
        verify(out)
        kept = load_file(out.folder / DENSE / "model.safetensors")
        own = load_file(Path("a", DENSE, "model.safetensors"))
        assert all(torch.equal(kept[name], own[name]) for name in HEAD)
        lines = told(recipe(base_model="a"))
        assert any("keeps the weights in 2_Dense of a as they are: no other" in s for s in lines)

    def test_those_of_others_are_left_out(self) -> None:
        shutil.rmtree(Path("a", DENSE))
        out = built(recipe(base_model="a"))
        verify(out)
        assert not (out.folder / DENSE).exists()
        lines = told(recipe(base_model="a"))
        assert any("leaves out 2_Dense of b: a has no such folder" in line for line in lines)

    def test_other_shapes_count_as_another_folder(self) -> None:
        encoder("b", 2, **{DENSE: HEAD | {"linear.weight": (8, 16)}})
        out = built(recipe(base_model="b"))
        kept = load_file(out.folder / DENSE / "model.safetensors")
        assert kept["linear.weight"].shape == (8, 16)
        lines = told(recipe(base_model="b"))
        assert any("keeps the weights in 2_Dense of b as they are: those of a" in s for s in lines)

    def test_other_settings_are_told(self) -> None:
        Path("b", "1_Pooling", "config.json").write_text('{"pooling_mode_cls_token": true}')
        (line,) = told(recipe(base_model="a"))
        assert "1_Pooling/config.json of b and a differ; the result has those of a" in line


def built_of(*documents: dict[str, Any]) -> Built:
    return merge("\n---\n".join(map(json.dumps, documents)))
