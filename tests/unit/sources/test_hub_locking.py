"""Locks from the Hub, with the real client against a loopback Hub."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from helpers.hub_cases import READER, add_model, write_weights
from helpers.loopback_hub import LoopbackHub
from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.base.safetensors import read_header
from shardmerge.recipe.references import Reference
from shardmerge.sources import hub
from shardmerge.sources.changes import describe_changes
from shardmerge.sources.hub import client
from shardmerge.sources.hub_store import HubStore
from shardmerge.sources.lock import Lock
from shardmerge.sources.locking import lock_hub
from shardmerge.sources.store import StoreContext

SHARDS = {
    "model-00001-of-00002.safetensors": [("a", "F16", (8, 4)), ("b", "BF16", (4,))],
    "model-00002-of-00002.safetensors": [("c", "F32", (3, 3))],
}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    waits = []
    monkeypatch.setattr(client, "pause", waits.append)
    with LoopbackHub(tmp_path / "hub") as server:
        server.waits = waits
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def told(repo: Any, revision: Any = None) -> str:
    with pytest.raises(UserError) as caught:
        lock_hub(repo, revision)
    return str(caught.value)


class TestLockSource:
    def test_pins_commit_files_config_and_tensors(self, served: LoopbackHub) -> None:
        folder = add_model(served.store.root, "o/m", SHARDS)
        source = lock_hub("o/m", "main")
        assert source.kind == "hub"
        assert (source.repo, source.revision) == ("o/m", "main")
        assert source.commit == served.store.commit_of("o/m", folder)
        assert source.config == {"model_type": "llama", "hidden_size": 32}
        entries = {entry.path: entry for entry in served.store.entries(folder)}
        assert list(source.files) == sorted(n for n in entries if n != "README.md")
        for name, file in source.files.items():
            assert file.size == entries[name].size
            large = name.endswith(".safetensors")
            assert file.sha256 == (entries[name].sha256 if large else None)
            assert file.git_oid == (None if large else entries[name].git_oid)
        for name, tensor in source.tensors.items():
            entry = read_header(folder / tensor.file).tensors[name]
            assert (tensor.dtype, tensor.shape) == (entry.dtype, entry.shape)
            assert (tensor.begin, tensor.end) == (entry.begin, entry.end)
        assert list(source.tensors) == ["a", "b", "c"]
        lock = Lock({"o/m": source})
        assert Lock.from_json(json.loads(json.dumps(lock.to_json())), "x") == lock

    def test_gives_the_bytes_of_tensors(self, served: LoopbackHub) -> None:
        folder = add_model(served.store.root, "o/m", SHARDS)
        source = lock_hub("o/m", "main")
        context = StoreContext(Path(), Identities(Path(), keep=False))
        store = HubStore("o/m", Reference("o/m", "main"), context)
        tensors = [source.tensors[name] for name in ("c", "a")]
        found = store.spans([(t.file, t.begin, t.end) for t in tensors], source.origin)
        assert found == [(folder / t.file).read_bytes()[t.begin : t.end] for t in tensors]

    def test_asks_once_for_metadata_and_once_for_each_header(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m", SHARDS)
        lock_hub("o/m", None)
        assert len(served.requests("^/api/")) == 1
        assert len(served.requests("/resolve/.*config.json")) == 1
        for name in SHARDS:
            assert len(served.requests(f"/resolve/.*/{name}")) == 1
        assert len(served.requests("tokenizer")) == 0

    def test_reads_no_more_than_headers_of_large_files(self, served: LoopbackHub) -> None:
        tensors = {"model.safetensors": [("x", "F16", (2048, 1024))]}
        add_model(served.store.root, "o/m", tensors)
        lock_hub("o/m", None)
        assert sum(r.sent for r in served.requests("/_cdn/")) == 128 * 1024

    def test_a_header_longer_than_the_first_request(self, served: LoopbackHub) -> None:
        many = [(f"layer.{i}.{'x' * 90}", "F16", (1,)) for i in range(1500)]
        add_model(served.store.root, "o/m", {"model.safetensors": many})
        source = lock_hub("o/m", None)
        assert len(source.tensors) == 1500
        assert [r.range for r in served.requests("/_cdn/")][1].startswith("bytes=131072-")

    def test_a_server_without_ranges(self, served: LoopbackHub) -> None:
        many = [(f"layer.{i}.{'x' * 90}", "F16", (1,)) for i in range(1500)]
        add_model(served.store.root, "o/m", {"model.safetensors": many})
        served.fault("/_cdn/", "norange", times=9)
        assert len(lock_hub("o/m", None).tensors) == 1500

    def test_says_how_far_it_is(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m", SHARDS)
        lines = []
        lock_hub("o/m", "main", progress=lines.append)
        assert lines == ["o/m@main: 2 of 2 headers"]

    def test_a_tag_or_branch_is_resolved(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m")
        folder = add_model(served.store.root, "o/m@v2", seed=7)
        assert lock_hub("o/m", "v2").commit == served.store.commit_of("o/m", folder)

    def test_a_commit_stays_itself_after_the_branch_has_moved(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m")
        first = lock_hub("o/m", None)
        (served.store.root / "o/m").rename(served.store.root / "o/m@old")
        add_model(served.store.root, "o/m", seed=5)
        assert lock_hub("o/m", first.commit).files == first.files
        moved = lock_hub("o/m", None)
        assert hub.latest_commit("o/m", None) == moved.commit != first.commit
        lines = describe_changes(Lock({"m": first}), Lock({"m": moved}))
        assert lines[0].startswith(f"m: the default branch moved from {first.commit[:12]}")
        assert any(line.startswith("m: model.safetensors has another content") for line in lines)

    def test_is_the_same_twice(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m", SHARDS)
        texts = [json.dumps(Lock({"m": lock_hub("o/m", None)}).to_json()) for _ in "ab"]
        assert texts[0] == texts[1]


class TestFaults:
    @pytest.mark.parametrize("status", [429, 500, 503])
    @pytest.mark.parametrize("path", ["^/api/", "/resolve/.*safetensors", "/_cdn/"])
    def test_a_busy_server_is_asked_again(
        self, served: LoopbackHub, status: int, path: str
    ) -> None:
        add_model(served.store.root, "o/m")
        served.fault(path, "status", status=status, headers={"Retry-After": "3"})
        lock_hub("o/m", None)
        assert served.waits == [3]

    def test_a_dropped_header_is_asked_for_again(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m")
        served.fault("/_cdn/", "drop", after=20)
        assert list(lock_hub("o/m", None).tensors) == ["lm_head.weight"]

    def test_a_small_file_that_is_not_its_hash(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m")
        served.fault("config.json", "corrupt")
        assert "another content than its hash says" in told("o/m")

    @pytest.mark.parametrize("after", [0, 3, 12])
    def test_a_file_cut_off_in_its_header(self, served: LoopbackHub, after: int) -> None:
        folder = add_model(served.store.root, "o/m")
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:after])
        assert "o/m/model.safetensors: " in told("o/m")

    def test_a_hostile_header(self, served: LoopbackHub) -> None:
        folder = add_model(served.store.root, "o/m")
        (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}" * 99)
        assert "declares a header of" in told("o/m")
        assert sum(r.sent for r in served.requests("/_cdn/")) < 1000

    def test_an_index_that_disagrees_with_the_headers(self, served: LoopbackHub) -> None:
        folder = add_model(served.store.root, "o/m", SHARDS)
        index = folder / "model.safetensors.index.json"
        index.write_text(index.read_text().replace('"a":', '"z":'))
        assert "puts 'z' into model-00001-of-00002.safetensors, which lacks it" in told("o/m")

    def test_an_index_that_leads_out(self, served: LoopbackHub) -> None:
        folder = add_model(served.store.root, "o/m", SHARDS)
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x"}}')
        assert "not a plain path within the model" in told("o/m")

    @pytest.mark.parametrize("text", ["[]", "{", "NaNN", "[" * 5000])
    def test_a_broken_config(self, served: LoopbackHub, text: str) -> None:
        folder = add_model(served.store.root, "o/m")
        (folder / "config.json").write_text(text)
        assert "not JSON" in told("o/m") or "not a JSON object" in told("o/m")


class TestSentences:
    """One clear sentence each, and nothing downloaded."""

    def test_pickles_only(self, served: LoopbackHub) -> None:
        folder = add_model(served.store.root, "o/m")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        text = told("o/m")
        assert text.startswith("o/m: has its weights only as pickles (pytorch_model.bin)")
        assert served.requests("/resolve/") == []

    def test_no_config(self, served: LoopbackHub) -> None:
        folder = add_model(served.store.root, "o/m")
        (folder / "config.json").unlink()
        assert told("o/m").startswith("o/m: has no config.json")
        assert served.requests("/resolve/") == []

    def test_gated_without_a_token(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m", settings={"gated": True, "readers": [READER]})
        text = told("o/m")
        assert text.startswith("o/m: is gated, and no token is set\n")
        assert f"Visit {served.url}/o/m, accept its terms, then run `hf auth login`" in text
        assert served.requests("/_cdn/") == []

    def test_gated_with_a_token_that_has_no_access(
        self, served: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_model(served.store.root, "o/m", settings={"gated": True, "readers": [READER]})
        monkeypatch.setenv("HF_TOKEN", "hf_somebodyElsesTokenHere")
        text = told("o/m")
        assert "is gated, and the token in use has not been given access" in text
        assert "hf_somebody" not in text

    def test_gated_with_access(self, served: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        add_model(served.store.root, "o/m", settings={"gated": True, "readers": [READER]})
        monkeypatch.setenv("HF_TOKEN", READER)
        assert "lm_head.weight" in lock_hub("o/m", None).tensors

    def test_gated_with_access_from_the_login_file(
        self, served: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        add_model(served.store.root, "o/m", settings={"gated": True, "readers": [READER]})
        (tmp_path / "login").write_text(READER + "\n")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "login"))
        assert "lm_head.weight" in lock_hub("o/m", None).tensors

    def test_the_token_goes_to_the_hub_and_not_to_storage(
        self, served: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_model(served.store.root, "o/m")
        monkeypatch.setenv("HF_TOKEN", READER)
        lock_hub("o/m", None)
        assert all(r.auth for r in served.requests("/resolve/"))
        assert not any(r.auth for r in served.requests("/_cdn/"))

    def test_private_without_a_token(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m", settings={"private": True, "readers": [READER]})
        text = told("o/m")
        assert text.startswith("o/m: is not on the Hub, or is private and no token is set")

    def test_missing_with_a_token(
        self, served: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", READER)
        assert "is private and the token in use cannot see it" in told("o/nothing")

    def test_missing_revision(self, served: LoopbackHub) -> None:
        add_model(served.store.root, "o/m")
        add_model(served.store.root, "o/m@v1.0")
        text = told("o/m", "v1.1")
        assert text == "o/m@v1.1: has no revision 'v1.1'\n  Did you mean 'v1.0'?"

    def test_not_a_name(self, served: LoopbackHub) -> None:
        assert "is not the name of a repository" in told("o/m/x")

    def test_no_network(self, served: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as closed:  # bound, so that nobody else listens there
            closed.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{closed.getsockname()[1]}"
            monkeypatch.setenv("HF_ENDPOINT", address)
            text = told("o/m")
        assert text.startswith(f"o/m: cannot be asked for: the Hub at {address} does not answer")
        assert "Is there a network on this machine" in text
        assert sum(served.waits) < 15

    def test_offline_mode(self, served: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "since HF_HUB_OFFLINE is set" in told("o/m")

    def test_something_else_than_a_hub(
        self, served: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", served.url + "/api/whoami-v2?")
        assert "is not a Hub's" in told("o/m") or "no commit" in told("o/m")


class TestWhatIsNotOfTheModel:
    def test_other_files_are_neither_locked_nor_asked_for(self, served: LoopbackHub) -> None:
        folder = add_model(served.store.root, "o/m")
        (folder / "original").mkdir()
        write_weights(folder / "consolidated.safetensors", [("x", "F16", (4,))])
        for name in ("pytorch_model.bin", "m.gguf", "a b:c.png", "original/params.json"):
            (folder / name).write_text("x")
        source = lock_hub("o/m", None)
        assert list(source.files) == ["config.json", "model.safetensors", "tokenizer.json"]
        assert served.requests("bin|gguf|consolidated|original") == []
        shutil.rmtree(folder)
