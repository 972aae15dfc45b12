"""The user's Hugging Face cache, filled by the real client, saves downloads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Never

import pytest
from huggingface_hub import constants, hf_hub_download

from helpers.hub_cases import add_model, big_file, locked
from helpers.loopback_hub import LoopbackHub
from shardmerge.sources import hub
from shardmerge.sources.hub import cache

NAME = "model.safetensors"


class Case:
    """A served model and a cache that holds files of it."""

    def __init__(self, server: Any, tmp_path: Path) -> None:
        self.server, self.cache, self.lines = server, tmp_path / "cache", []
        add_model(server.store.root, "o/m", big_file(2))
        self.target = tmp_path / "models" / NAME

    def fill(self, name: Any = NAME, repo: Any = "o/m") -> Any:
        """Let the real client fill the cache; return the blob."""
        path = hf_hub_download(repo, name, cache_dir=self.cache, endpoint=self.server.url)
        self.server.log.clear()
        return os.path.realpath(path)

    def fetch(self, name: Any = NAME, **more: Any) -> Any:
        commit, entry, file = locked(self.server, "o/m", name)
        target = self.target.with_name(name)
        record = hub.fetch("o/m", commit, name, file, target, progress=self.lines.append, **more)
        assert target.read_bytes() == entry.file.read_bytes()
        assert not target.is_symlink()
        assert [p.name for p in target.parent.iterdir()] == [name]
        return record


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with LoopbackHub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield Case(server, tmp_path)


@pytest.fixture
def no_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_clone", lambda blob, part: False)


class TestCache:
    def test_a_cached_file_is_not_downloaded(self, case: Any) -> None:
        case.fill()
        record = case.fetch()
        assert record.how in ("cloned", "linked")
        assert record.downloaded == 0
        assert case.server.log == []

    def test_takes_no_second_copy_where_blocks_cannot_be_shared(
        self, case: Any, no_clones: None
    ) -> None:
        blob = case.fill()
        assert case.fetch().how == "linked"
        assert os.path.samefile(blob, case.target)

    def test_deleting_the_cache_leaves_the_link(self, case: Any, no_clones: None) -> None:
        case.fill()
        case.fetch()
        shutil.rmtree(case.cache)
        assert case.fetch().how == "present"

    def test_a_blob_that_others_may_not_read_is_copied(self, case: Any, no_clones: None) -> None:
        blob = case.fill()
        os.chmod(blob, 0o400)
        assert case.fetch().how == "copied"
        assert case.target.stat().st_mode & 0o777 == 0o666 & ~cache_umask()
        assert os.stat(blob).st_mode & 0o777 == 0o400

    def test_a_copy_if_asked(self, case: Any, no_clones: None) -> None:
        blob = case.fill()
        assert case.fetch(cache_use="copy").how == "copied"
        assert not os.path.samefile(blob, case.target)

    def test_a_copy_goes_on_where_it_was(self, case: Any, no_clones: None) -> None:
        case.fill()
        _, entry, _ = locked(case.server, "o/m", NAME)
        case.target.parent.mkdir()
        part = case.target.with_name(f"{NAME}.{entry.sha256[:16]}.part")
        part.write_bytes(entry.file.read_bytes()[:1000])
        assert case.fetch(cache_use="copy").how == "copied"

    def test_across_file_systems(
        self, case: Any, no_clones: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case.fill()

        def refused(*_: Any, **__: Any) -> Never:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(cache.os, "link", refused)
        assert case.fetch().how == "copied"

    def test_off(self, case: Any) -> None:
        case.fill()
        assert case.fetch(cache_use="off").how == "downloaded"

    def test_a_small_file_is_copied(self, case: Any, no_clones: None) -> None:
        case.fill("config.json")
        assert case.fetch("config.json").how == "copied"
        assert case.server.log == []

    def test_the_same_content_in_another_repository(self, case: Any) -> None:
        shutil.copytree(case.server.store.root / "o/m", case.server.store.root / "p/copy")
        case.fill(repo="p/copy")
        assert case.fetch().downloaded == 0

    def test_a_cache_without_links(self, case: Any) -> None:
        blob = case.fill()
        commit, _, _ = locked(case.server, "o/m", NAME)
        snapshot = case.cache / "models--o--m" / "snapshots" / commit / NAME
        snapshot.unlink()
        os.replace(blob, snapshot)
        assert case.fetch().downloaded == 0

    @pytest.mark.parametrize("use", ["link", "copy"])
    def test_a_damaged_blob_is_found_out(self, case: Any, no_clones: None, use: str) -> None:
        blob = case.fill()
        with open(blob, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        assert case.fetch(cache_use=use).how == "downloaded"
        assert any("copy is damaged; downloading it instead" in line for line in case.lines)

    def test_an_unfinished_download_of_the_client_is_not_taken(self, case: Any) -> None:
        blob = case.fill()
        os.rename(blob, blob + ".incomplete")
        assert case.fetch().how == "downloaded"

    def test_a_file_system_that_clones(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        blob = case.fill()

        def clone(source: Any, part: Any) -> bool:
            with open(source, "rb") as file:
                os.pwrite(part.fd, file.read(), 0)
            return True

        monkeypatch.setattr(cache, "_clone", clone)
        assert case.fetch().how == "cloned"
        assert not os.path.samefile(blob, case.target)


def cache_umask() -> Any:
    umask = os.umask(0)
    os.umask(umask)
    return umask
