"""Uploads with the real client to a loopback Hub (over LFS; xet has a service of its own)."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from helpers.hub_cases import (
    READER,
    SCRIPTS,
    WRITER,
    add_model,
    environment,
    files_with,
    run,
    wait_until,
    write_weights,
)
from helpers.loopback_hub import LoopbackHub
from helpers.loopback_uploads import PART_BYTES
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.base.hashing import sums_text
from shardmerge.package.collection import collect_repositories
from shardmerge.package.publish import publish
from shardmerge.package.uploads import list_export
from shardmerge.sources.hub import client

SHARDS = {
    f"model-0000{n}-of-00003.safetensors": [(f"layer.{n}", "F16", (100 * n, 64))] for n in (1, 2, 3)
}


def bundle(sums: Any) -> str:
    """Return what a signature file says of files; nobody has signed it."""
    rows = [{"name": n, "algorithm": "sha256", "digest": d} for n, d in sums.items()]
    payload = base64.b64encode(json.dumps({"predicate": {"resources": rows}}).encode()).decode()
    material = {"publicKey": {"hint": "x"}}
    return json.dumps({"verificationMaterial": material, "dsseEnvelope": {"payload": payload}})


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
        made = case.publish()
        assert case.arrived()
        assert json.loads((case.there / ".hub.json").read_text()) == {"private": True}
        assert len(case.server.commits) == 1
        assert made.url == f"{case.server.url}/me/merged/commit/{made.commit}"
        assert len(made.commit) == 40
        assert made.files["config.json"]["sha256"] == sha256_of(case.folder / "config.json")

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


class TestTag:
    def test_names_the_commit_after_all_is_there(self, case: Any) -> None:
        made = case.publish(tag="v1")
        assert [r.path for r in case.server.requests("/tag/", "POST")] == [
            f"/api/models/me/merged/tag/{made.commit}"
        ]
        order = [r.path for r in case.server.log if r.method == "POST"]
        assert order.index("/api/models/me/merged/commit/main") < len(order) - 1

    def test_again_is_no_error(self, case: Any) -> None:
        """A run that was killed after it had set the tag has no receipt, and comes again."""
        assert case.publish(tag="v1") == case.publish(tag="v1")
        assert len(case.server.commits) == 1

    def test_on_a_branch(self, case: Any) -> None:
        made = case.publish(revision="v2", tag="v2.0")
        assert (case.there.with_name("merged@v2.0") / "config.json").is_file()
        assert not (case.there / "config.json").exists()
        assert made.commit

    def test_one_of_other_files_is_refused_before_anything_moves(self, case: Any) -> None:
        case.publish(tag="v1")
        (case.folder / "config.json").write_text("{}")
        case.server.log.clear()
        assert "has a tag 'v1' already, of other files" in case.told(tag="v1")
        assert case.server.requests("", "POST") == case.server.requests("validate", "POST")
        assert json.loads((case.there.with_name("merged@v1") / "config.json").read_text()) != {}

    def test_none_where_the_upload_failed(self, case: Any) -> None:
        case.server.fault("/commit/", "status", method="POST", status=403)
        case.told(tag="v1")
        assert case.server.tags == set()


class TestSignature:
    def test_goes_with_the_files_that_it_is_of(self, case: Any, tmp_path: Path) -> None:
        signature = case.folder / "model.sig"
        sums = {p.name: sha256_of(p) for p in case.folder.iterdir()}
        signature.write_text(bundle(sums))
        made = case.publish(signature=signature)
        assert case.arrived() and "model.sig" in made.files

    def test_of_other_files_is_refused(self, case: Any) -> None:
        signature = case.folder / "model.sig"
        signature.write_text(bundle({"config.json": "0" * 64}))
        assert "model.sig: is not of" in case.told(signature=signature)
        assert case.server.commits == []

    def test_stays_here_if_signing_is_not_asked_for(self, case: Any) -> None:
        (case.folder / "model.sig").write_text("old")
        made = case.publish()
        assert "model.sig" not in made.files
        assert "  not uploaded: model.sig (signing is not asked for)" in case.lines


class TestCollection:
    def test_gets_all_repositories_once(self, case: Any) -> None:
        made = collect_repositories(
            "All of it", ["me/merged", "me/merged-GGUF"], progress=case.lines.append
        )
        assert made.repositories == ("me/merged", "me/merged-GGUF")
        again = collect_repositories("All of it", ["me/merged", "me/other"])
        assert again.slug == made.slug == f"me/all-of-it-{'0' * 24}"
        assert again.repositories == ("me/merged", "me/merged-GGUF", "me/other")
        assert case.server.collections[made.slug]["private"] is True

    def test_one_that_is_there_by_its_slug(self, case: Any) -> None:
        made = collect_repositories("Mine", ["me/a"], private=False)
        assert collect_repositories(made.slug, ["me/b"]).repositories == ("me/a", "me/b")

    def test_what_the_hub_refuses_is_told(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", READER)
        with pytest.raises(UserError, match="They are published all the same") as caught:
            collect_repositories("Mine", ["me/a"])
        assert READER not in str(caught.value)


class TestKilled:
    def test_an_upload_that_is_killed_goes_on_and_sends_nothing_twice(
        self, case: Any, tmp_path: Path
    ) -> None:
        """One file arrives, another is held by the Hub when the process is killed."""
        (tmp_path / "loaded.json").write_text('{"passed": true}')
        sums = {p.name: sha256_of(p) for p in case.folder.iterdir()}
        (case.folder / "SHA256SUMS").write_text(sums_text(sums))
        receipt = tmp_path / "receipt.json"
        command = [sys.executable, str(SCRIPTS / "publish.py"), "--kind=adapter", "--tag=v1"]
        command += [f"--folder={case.folder}", f"--loaded={tmp_path / 'loaded.json'}"]
        command += ["--repo=me/merged", f"--output={receipt}"]
        env = environment(case.server, tmp_path / "home", WRITER)
        case.server.fault("/_lfs/", "hang", method="PUT", seconds=60)
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        wait_until(lambda: sum(r.status == 200 for r in case.puts()) == 2, process)
        process.kill()
        process.wait()
        assert not receipt.exists() and case.server.commits == []
        sent = {r.path for r in case.puts() if r.status == 200}
        case.server.log.clear()
        done = run(command, env)
        assert done.returncode == 0, done.stderr
        assert case.arrived()
        assert len(case.puts()) == 1 and sent.isdisjoint(r.path for r in case.puts())
        told = json.loads(receipt.read_text())
        assert told["commit"] == case.server.store.commit_of("me/merged", case.there)
        assert (told["tag"], told["kind"], told["private"]) == ("v1", "adapter", True)
        assert told["files"]["config.json"]["sha256"] == sums["config.json"]
        assert files_with(WRITER, tmp_path / "results", receipt.parent) == []
        assert WRITER not in done.stdout + done.stderr


class TestDryRun:
    def test_tells_what_is_there_already(self, case: Any) -> None:
        name = "model-00002-of-00003.safetensors"
        sums = {p.name: sha256_of(p) for p in case.folder.iterdir()}
        (case.folder / "SHA256SUMS").write_text(sums_text(sums))
        case.publish()
        case.lines.clear()
        case.publish(dry_run=True)
        assert any(name in line and line.endswith("there already") for line in case.lines)

    def test_lists_and_changes_nothing(self, case: Any) -> None:
        (case.folder / "run.log").write_text("x")
        made = case.publish(dry_run=True)
        assert (made.url, made.commit) == (f"{case.server.url}/me/merged", None)
        assert made.files["config.json"] == {"size": (case.folder / "config.json").stat().st_size}
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
