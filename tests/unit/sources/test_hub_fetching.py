"""One file of a commit, with the real client against a loopback Hub and its faults."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_cases import ONE_FILE, READER, WEIGHTS, FetchCase, add_model, fetch_case, locked
from shardmerge.base.errors import UserError
from shardmerge.base.identities import LockedFile
from shardmerge.sources import hub
from shardmerge.sources.hub import partfile


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with fetch_case(tmp_path, monkeypatch) as made:
        yield made


class TestFetch:
    def test_brings_the_file_and_nothing_beside_it(self, case: FetchCase) -> None:
        record = case.fetch()
        assert case.arrived()
        assert record.how == "downloaded"
        assert record.downloaded == record.size == len(case.content)
        assert record.identity == f"sha256:{case.entry.sha256}"
        assert case.ranges() == [None]

    def test_is_readable_for_others_as_the_umask_says(self, case: FetchCase) -> None:
        old = os.umask(0o027)
        try:
            case.fetch()
        finally:
            os.umask(old)
        assert case.target.stat().st_mode & 0o777 == 0o640

    def test_is_there_already(self, case: FetchCase) -> None:
        case.fetch()
        before = case.target.stat()
        assert case.fetch().how == "present"
        after = case.target.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert len(case.ranges()) == 1

    def test_a_small_file_is_checked_by_its_git_oid(self, case: FetchCase) -> None:
        commit, entry, file = locked(case.server, "o/m", "config.json")
        assert file.sha256 is None
        target = case.target.with_name("config.json")
        hub.fetch("o/m", commit, "config.json", file, target)
        assert target.read_bytes() == entry.file.read_bytes()

    def test_an_empty_file_needs_no_request(self, case: FetchCase) -> None:
        empty = LockedFile(0, git_oid="e69de29bb2d1d6434b8b29ae775ad8c2e48c5391")
        target = case.target.with_name("added_tokens.json")
        hub.fetch("o/m", case.commit, "added_tokens.json", empty, target)
        assert target.read_bytes() == b""
        assert case.server.log == []

    def test_a_file_of_another_content_is_left_alone(self, case: FetchCase) -> None:
        case.target.parent.mkdir(parents=True)
        case.target.write_bytes(b"mine")
        assert "exists, but its content is not the one that the lock names" in case.told()
        assert case.target.read_bytes() == b"mine"
        assert case.server.log == []

    def test_says_how_it_came(self, case: FetchCase) -> None:
        case.fetch()
        assert case.lines[-1].startswith(f"{WEIGHTS}: downloaded, 615 kB in ")

    def test_wants_a_commit(self, case: FetchCase) -> None:
        with pytest.raises(UserError, match="is not a 40-hex commit"):
            hub.fetch("o/m", "main", WEIGHTS, case.locked, case.target)

    def test_wants_a_hash(self, case: FetchCase) -> None:
        with pytest.raises(UserError, match="no sha256 in the lock"):
            hub.fetch("o/m", case.commit, WEIGHTS, LockedFile(5), case.target)


class TestResume:
    @pytest.mark.parametrize("count", [1, 65536, 300_000, 614_519])
    def test_asks_for_the_rest_only(self, case: FetchCase, count: int) -> None:
        case.keep(count)
        record = case.fetch()
        assert case.arrived()
        assert case.ranges() == [f"bytes={count}-"]
        assert case.sent() == len(case.content) - count == record.downloaded
        assert record.resumed_from == count

    def test_a_whole_part_needs_no_request(self, case: FetchCase) -> None:
        case.keep(len(case.content))
        case.fetch()
        assert case.arrived()
        assert case.server.log == []

    def test_a_part_with_a_wrong_byte_is_found_out(self, case: FetchCase) -> None:
        case.part.parent.mkdir(parents=True)
        case.part.write_bytes(b"\0" * 1000)
        case.fetch()
        assert case.arrived()
        assert case.ranges() == ["bytes=1000-", None]

    def test_a_part_that_is_too_long_is_not_used(self, case: FetchCase) -> None:
        case.part.parent.mkdir(parents=True)
        case.part.write_bytes(case.content + b"more")
        case.fetch()
        assert case.arrived()
        assert case.ranges() == [None]

    def test_a_part_of_another_content_is_not_touched(self, case: FetchCase) -> None:
        other = case.part.with_name(f"{WEIGHTS}.0123456789abcdef.part")
        other.parent.mkdir(parents=True)
        other.write_bytes(b"another revision's")
        case.fetch()
        assert case.target.read_bytes() == case.content
        assert other.read_bytes() == b"another revision's"

    def test_a_link_in_the_place_of_the_part_is_not_followed(
        self, case: FetchCase, tmp_path: Path
    ) -> None:
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        case.part.parent.mkdir(parents=True)
        case.part.symlink_to(victim)
        with pytest.raises(OSError, match="symbolic links"):
            case.fetch()
        assert victim.read_bytes() == b"precious"

    def test_goes_on_although_the_branch_has_moved(self, case: FetchCase) -> None:
        case.keep(1000)
        case.folder.rename(case.folder.with_name("m@old"))
        add_model(case.server.store.root, "o/m", ONE_FILE, seed=9)
        case.fetch()
        assert case.arrived()


class TestGated:
    def test_without_and_with_a_token(
        self, case: FetchCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (case.folder / ".hub.json").write_text(f'{{"gated": true, "readers": ["{READER}"]}}')
        assert f"Visit {case.server.url}/o/m, accept its terms" in case.told()
        monkeypatch.setenv("HF_TOKEN", READER)
        case.fetch()
        assert case.target.read_bytes() == case.content
        assert not any(request.auth for request in case.server.requests("/_cdn/"))
        assert READER not in "\n".join(case.lines)


class TestDiskFull:
    @pytest.mark.parametrize(
        ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota is used up")]
    )
    def test_says_so_and_keeps_the_part(
        self, case: FetchCase, monkeypatch: pytest.MonkeyPatch, number: int, words: str
    ) -> None:
        write = os.pwrite

        def limited(fd: Any, data: Any, offset: Any) -> Any:
            if offset >= 200_000:
                raise OSError(number, os.strerror(number))
            return write(fd, data[: 200_000 - offset], offset)

        with monkeypatch.context() as context:
            context.setattr(partfile.os, "pwrite", limited)
            text = case.told()
        assert words in text
        assert f"200 kB of 615 kB are kept in {case.part.name}" in text
        assert case.part.read_bytes() == case.content[:200_000]
        case.fetch()
        assert case.arrived()
        assert case.ranges()[-1] == "bytes=200000-"
