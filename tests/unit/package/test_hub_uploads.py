"""What of a model folder goes up, and what never does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_cases import add_model
from shardmerge.base.errors import UserError
from shardmerge.package.uploads import check_sums, list_uploads

SHARDS = {
    "model-00001-of-00002.safetensors": [("a", "F16", (8, 4))],
    "model-00002-of-00002.safetensors": [("b", "F16", (8, 4))],
}


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    return add_model(tmp_path, "model", SHARDS)


class TestListUploads:
    def test_a_model_whole(self, folder: Path) -> None:
        more = [
            "SHA256SUMS",
            "mergekit_config.yml",
            "provenance.json",
            "LICENSE",
            "tokenizer.model",
        ]
        for name in more:
            (folder / name).write_text("x")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tools.jinja").write_text("x")
        uploads, left_out = list_uploads(folder)
        assert left_out == []
        assert sorted(upload.name for upload in uploads) == sorted(
            [
                *(*more, *SHARDS, "config.json", "tokenizer.json", "README.md"),
                *("model.safetensors.index.json", "additional_chat_templates/tools.jinja"),
            ]
        )
        assert all(upload.size == upload.path.stat().st_size for upload in uploads)

    @pytest.mark.parametrize(
        "name",
        [
            *(".env", ".token", ".cache.json", "run.log", "run.log.json", "recipe.lock.json"),
            *("model.safetensors.0123456789abcdef.part", "x.tmp", "weights.bin", "id_rsa", "a.pt"),
            *("plan.json", "verify.json", "script.sh", "notes"),
        ],
    )
    def test_what_models_do_not_have_stays_here(self, folder: Path, name: str) -> None:
        (folder / name).write_text("x")
        uploads, left_out = list_uploads(folder)
        assert name not in [upload.name for upload in uploads]
        assert [left for left, _ in left_out] == [name]

    def test_folders_stay_here(self, folder: Path) -> None:
        (folder / "logs").mkdir()
        (folder / "logs" / "config.json").write_text("{}")
        assert list_uploads(folder)[1] == [("logs", "a folder")]

    def test_a_link_ends_it(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "secret.json").write_text("{}")
        (folder / "extra.json").symlink_to(tmp_path / "secret.json")
        with pytest.raises(UserError, match=r"extra\.json: is a link"):
            list_uploads(folder)

    def test_a_linked_folder_ends_it(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="is a link"):
            list_uploads(folder)

    def test_a_shard_is_missing(self, folder: Path) -> None:
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors"):
            list_uploads(folder)

    def test_a_shard_too_many(self, folder: Path) -> None:
        (folder / "model-00003-of-00003.safetensors").write_bytes(b"x")
        with pytest.raises(UserError, match="which its index does not name"):
            list_uploads(folder)

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        with pytest.raises(UserError, match=r"has no config\.json"):
            list_uploads(folder)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is not a folder"):
            list_uploads(tmp_path / "nothing")

    def test_a_broken_index(self, folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text("{")
        with pytest.raises(UserError, match="is not JSON"):
            list_uploads(folder)


class TestCheckSums:
    def digests(self, folder: Any) -> dict[Any, Any]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    def test_as_it_was_verified(self, folder: Path) -> None:
        lines = [f"{value}  {name}" for name, value in self.digests(folder).items()]
        (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
        check_sums(folder, self.digests(folder))

    def test_changed_since(self, folder: Path) -> None:
        lines = [f"{value}  {name}" for name, value in self.digests(folder).items()]
        (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
        (folder / "config.json").write_text(json.dumps({"model_type": "other"}))
        with pytest.raises(UserError, match=r"config\.json: is not the file any more"):
            check_sums(folder, self.digests(folder))

    def test_a_model_without_sums(self, folder: Path) -> None:
        check_sums(folder, self.digests(folder))
