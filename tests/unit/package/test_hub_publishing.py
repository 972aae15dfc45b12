"""Uploads with the real client to a loopback Hub (over LFS; xet has a service of its own)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from helpers.hub_cases import READER, WRITER, add_model, write_weights
from helpers.loopback_hub import LoopbackHub
from helpers.loopback_uploads import PART_BYTES
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.base.hashing import sums_text
from shardmerge.package.publish import publish
from shardmerge.package.uploads import list_export
from shardmerge.sources.hub import client

SHARDS = {
    f"model-0000{n}-of-00003.safetensors": [(f"layer.{n}", "F16", (100 * n, 64))] for n in (1, 2, 3)
}


class Case:
    """A model folder and a Hub without it."""

    def __init__(self, server: Any, tmp_path: Path) -> None:
        self.server, self.lines = server, []
        self.folder = add_model(tmp_path, "results/model", SHARDS)
        self.there = server.store.root / "me" / "merged"

    def publish(self, **more: Any) -> Any:
        return publish(self.folder, "me/merged", progress=self.lines.append, **more)

    def told(self, **more: Any) -> str:
        with pytest.raises(UserError) as caught:
            self.publish(**more)
        return str(caught.value)

    def puts(self) -> Any:
        return self.server.requests("/_lfs/", "PUT")

    def arrived(self) -> bool:
        ours = {p.name: p.read_bytes() for p in self.folder.iterdir()}
        theirs = {p.name: p.read_bytes() for p in self.there.iterdir() if p.name != ".hub.json"}
        return ours == theirs


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(client, "pause", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as server:
        server.writers.add(WRITER)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield Case(server, tmp_path)


class TestPublish:
    def test_makes_a_private_repository_with_the_model_in_one_commit(self, case: Any) -> None:
        url = case.publish()
        assert case.arrived()
        assert json.loads((case.there / ".hub.json").read_text()) == {"private": True}
        assert len(case.server.commits) == 1
        assert url.startswith(f"{case.server.url}/me/merged/commit/")

    def test_public_only_if_asked(self, case: Any) -> None:
        case.publish(private=False)
        assert json.loads((case.there / ".hub.json").read_text()) == {"private": False}

    def test_a_folder_stays_as_it_was(self, case: Any) -> None:
        before = sorted(p.name for p in case.folder.rglob("*"))
        case.publish()
        assert sorted(p.name for p in case.folder.rglob("*")) == before

    def test_the_commit_message(self, case: Any) -> None:
        case.publish(commit_message="Merge of two")
        assert case.server.commits[0][0]["summary"] == "Merge of two"

    def test_again_uploads_and_commits_nothing(self, case: Any) -> None:
        first = case.publish()
        count = len(case.puts())
        assert case.publish() == first
        assert len(case.puts()) == count == 3
        assert len(case.server.commits) == 1

    def test_one_shard_has_changed(self, case: Any) -> None:
        case.publish()
        write_weights(case.folder / "model-00002-of-00003.safetensors", [("layer.2", "F16", (5,))])
        case.publish()
        assert case.arrived()
        assert len(case.puts()) == 4

    def test_a_shard_larger_than_a_part(self, case: Any) -> None:
        name = "model-00001-of-00003.safetensors"
        write_weights(case.folder / name, [("layer.1", "F16", (7 * 512, 1024))])
        case.publish()
        assert case.arrived()
        assert [r.sent for r in case.puts()].count(PART_BYTES) == 1

    def test_to_a_branch(self, case: Any) -> None:
        case.publish(revision="v2")
        names = {p.name for p in case.there.with_name("merged@v2").iterdir()}
        assert "model-00003-of-00003.safetensors" in names
        assert not (case.there / "config.json").exists()

    def test_says_what_went_up(self, case: Any) -> None:
        case.publish()
        assert case.lines[0].startswith("7 files, ")
        assert "to a new private repository" in case.lines[0]
        assert any("there (7 of 7 files" in line for line in case.lines)

    def test_files_that_stay_there_are_named(self, case: Any) -> None:
        case.publish()
        (case.there / "model-00009-of-00009.safetensors").write_bytes(b"old")
        case.publish()
        said = "  stays there, though this model does not have it: model-00009-of-00009.safetensors"
        assert said in case.lines


class TestDryRun:
    def test_lists_and_changes_nothing(self, case: Any) -> None:
        (case.folder / "run.log").write_text("x")
        assert case.publish(dry_run=True) == f"{case.server.url}/me/merged"
        assert f"  config.json  {(case.folder / 'config.json').stat().st_size} B" in case.lines
        assert "  not uploaded: run.log (not a kind of file that models have)" in case.lines
        assert not case.there.exists()
        assert {request.method for request in case.server.log} == {"GET"}

    def test_needs_no_token(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        case.publish(dry_run=True)

    def test_tells_of_the_wrong_visibility(self, case: Any) -> None:
        case.publish()
        assert "exists and is private, but public is asked for" in case.told(
            dry_run=True, private=False
        )


class TestRefuses:
    def test_a_public_repository_where_a_private_one_is_expected(self, case: Any) -> None:
        case.there.mkdir(parents=True)
        assert "exists and is public, but private is asked for" in case.told()
        assert case.server.requests("", "POST") == []

    def test_a_private_repository_where_a_public_one_is_expected(self, case: Any) -> None:
        case.publish()
        assert "exists and is private, but public is asked for" in case.told(private=False)
        assert json.loads((case.there / ".hub.json").read_text()) == {"private": True}

    def test_no_token(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        assert "none is set" in case.told()
        assert case.server.requests("", "POST") == []

    def test_a_token_that_may_only_read(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", READER)
        text = case.told()
        assert "the token has not the right to do this" in text
        assert READER not in text
        assert case.puts() == []

    def test_a_repository_that_the_token_cannot_see(
        self, case: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case.publish()
        case.server.writers.clear()
        assert "is refused" in case.told() or "cannot see it" in case.told()

    def test_a_card_that_the_hub_does_not_take(self, case: Any) -> None:
        (case.folder / "README.md").write_text("---\nlicense: [\n---\n# A model\n")
        assert "README.md: has metadata that the Hub does not take" in case.told()
        assert case.puts() == []

    def test_a_file_that_has_changed_since_it_was_verified(self, case: Any) -> None:
        name = "model-00001-of-00003.safetensors"
        (case.folder / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
        assert "is not the file any more that SHA256SUMS lists" in case.told()
        assert case.server.commits == []

    def test_a_link_out(self, case: Any, tmp_path: Path) -> None:
        (tmp_path / "private.json").write_text("{}")
        (case.folder / "private.json").symlink_to(tmp_path / "private.json")
        assert "is a link" in case.told()
        assert case.server.log == []


class TestFaults:
    def test_an_upload_that_storage_answers_500_is_sent_again(self, case: Any) -> None:
        case.server.fault("/_lfs/", "status", method="PUT", status=500)
        case.publish()
        assert case.arrived()
        assert len(case.puts()) == 4

    def test_a_commit_that_the_hub_answers_503_is_sent_again(self, case: Any) -> None:
        case.server.fault("/commit/", "status", method="POST", status=503)
        case.publish()
        assert case.arrived()

    def test_what_had_gone_up_is_not_sent_again(self, case: Any) -> None:
        case.server.fault("/_lfs/", "status", method="PUT", status=403, times=1)
        assert "me/merged: " in case.told()
        sent = {r.path for r in case.puts() if r.status == 200}
        case.server.log.clear()
        case.publish()
        assert case.arrived()
        assert sent.isdisjoint(r.path for r in case.puts())
        assert len(sent) + len(case.puts()) == 3

    def test_a_hub_that_lost_a_file(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        case.publish()
        (case.folder / "config.json").write_text("{}")
        entries = case.server.store.entries

        def without_config(folder: Any) -> list[Any]:
            return [entry for entry in entries(folder) if entry.path != "config.json"]

        monkeypatch.setattr(case.server.store, "entries", without_config)
        assert "has not got config.json as it is here" in case.told()


class TestExport:
    def test_goes_up_with_its_folders_as_its_checksums_list_it(
        self, case: Any, tmp_path: Path
    ) -> None:
        folder = tmp_path / "results" / "gguf"
        (folder / "q8_0").mkdir(parents=True)
        files = {"README.md": "# x\n", "q8_0/x-Q8_0.gguf": "GGUF" * 9000, "provenance.json": "{}"}
        for name, text in files.items():
            (folder / name).write_text(text)
        (folder / "q8_0" / ".snakemake_timestamp").touch()
        sums = {name: sha256_of(folder / name) for name in files}
        (folder / "SHA256SUMS").write_text(sums_text(sums))
        publish(folder, "me/merged", listing=list_export)
        there = {p.relative_to(case.there).as_posix() for p in case.there.rglob("*") if p.is_file()}
        assert there - {".hub.json"} == {*files, "SHA256SUMS"}
        (folder / "q8_0/x-Q8_0.gguf").write_text("other")
        with pytest.raises(UserError, match="nothing is published"):
            publish(folder, "me/merged", listing=list_export)
