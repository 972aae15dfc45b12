"""One file of a commit, with the real client against a loopback Hub and its faults."""

from __future__ import annotations

import errno
import fcntl
import os
import socket

import pytest
from hub_cases import READER, add_model, locked
from huggingface_hub import constants
from loopback_hub import LoopbackHub

from shardmerge import hub
from shardmerge.errors import UserError
from shardmerge.hub import client, partfile
from shardmerge.lock import LockedFile

NAME = "model.safetensors"
#: 300 x 1024 x 2 bytes and a header.
TENSORS = {NAME: [("lm_head.weight", "F16", (300, 1024))]}


class Case:
    """A served file and a place for it."""

    def __init__(self, server, tmp_path, waits):
        self.server, self.waits, self.lines = server, waits, []
        self.folder = add_model(server.store.root, "o/m", TENSORS)
        self.target = tmp_path / "models" / "o--m" / NAME
        self.commit, self.entry, self.locked = locked(server, "o/m", NAME)
        self.part = self.target.with_name(f"{NAME}.{self.entry.sha256[:16]}.part")
        self.content = self.entry.file.read_bytes()

    def fetch(self, **more):
        more = {"progress": self.lines.append} | more
        return hub.fetch("o/m", self.commit, NAME, self.locked, self.target, **more)

    def told(self, **more):
        with pytest.raises(UserError) as caught:
            self.fetch(**more)
        return str(caught.value)

    def ranges(self):
        return [request.range for request in self.server.requests("/_cdn/")]

    def sent(self):
        return sum(request.sent for request in self.server.requests("/_cdn/"))

    def arrived(self):
        folder = sorted(path.name for path in self.target.parent.iterdir())
        return folder == [NAME] and self.target.read_bytes() == self.content

    def keep(self, count):
        self.part.parent.mkdir(parents=True)
        self.part.write_bytes(self.content[:count])


@pytest.fixture
def case(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    waits = []
    monkeypatch.setattr(client, "pause", waits.append)
    with LoopbackHub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield Case(server, tmp_path, waits)


class TestFetch:
    def test_brings_the_file_and_nothing_beside_it(self, case):
        record = case.fetch()
        assert case.arrived()
        assert record.how == "downloaded"
        assert record.downloaded == record.size == len(case.content)
        assert record.identity == f"sha256:{case.entry.sha256}"
        assert case.ranges() == [None]

    def test_is_readable_for_others_as_the_umask_says(self, case):
        old = os.umask(0o027)
        try:
            case.fetch()
        finally:
            os.umask(old)
        assert case.target.stat().st_mode & 0o777 == 0o640

    def test_is_there_already(self, case):
        case.fetch()
        before = case.target.stat()
        assert case.fetch().how == "present"
        assert case.target.stat() == before
        assert len(case.ranges()) == 1

    def test_a_small_file_is_checked_by_its_git_oid(self, case):
        commit, entry, file = locked(case.server, "o/m", "config.json")
        assert file.sha256 is None
        target = case.target.with_name("config.json")
        hub.fetch("o/m", commit, "config.json", file, target)
        assert target.read_bytes() == entry.file.read_bytes()

    def test_an_empty_file_needs_no_request(self, case):
        empty = LockedFile(0, git_oid="e69de29bb2d1d6434b8b29ae775ad8c2e48c5391")
        target = case.target.with_name("added_tokens.json")
        hub.fetch("o/m", case.commit, "added_tokens.json", empty, target)
        assert target.read_bytes() == b""
        assert case.server.log == []

    def test_a_file_of_another_content_is_left_alone(self, case):
        case.target.parent.mkdir(parents=True)
        case.target.write_bytes(b"mine")
        assert "exists, but its content is not the one that the lock names" in case.told()
        assert case.target.read_bytes() == b"mine"
        assert case.server.log == []

    def test_says_how_it_came(self, case):
        case.fetch()
        assert case.lines[-1].startswith(f"{NAME}: downloaded, 615 kB in ")

    def test_wants_a_commit(self, case):
        with pytest.raises(UserError, match="is not a 40-hex commit"):
            hub.fetch("o/m", "main", NAME, case.locked, case.target)

    def test_wants_a_hash(self, case):
        with pytest.raises(UserError, match="no sha256 in the lock"):
            hub.fetch("o/m", case.commit, NAME, LockedFile(5), case.target)


class TestResume:
    @pytest.mark.parametrize("count", [1, 65536, 300_000, 614_519])
    def test_asks_for_the_rest_only(self, case, count):
        case.keep(count)
        record = case.fetch()
        assert case.arrived()
        assert case.ranges() == [f"bytes={count}-"]
        assert case.sent() == len(case.content) - count == record.downloaded
        assert record.resumed_from == count

    def test_a_whole_part_needs_no_request(self, case):
        case.keep(len(case.content))
        case.fetch()
        assert case.arrived()
        assert case.server.log == []

    def test_a_part_with_a_wrong_byte_is_found_out(self, case):
        case.part.parent.mkdir(parents=True)
        case.part.write_bytes(b"\0" * 1000)
        case.fetch()
        assert case.arrived()
        assert case.ranges() == ["bytes=1000-", None]

    def test_a_part_that_is_too_long_is_not_used(self, case):
        case.part.parent.mkdir(parents=True)
        case.part.write_bytes(case.content + b"more")
        case.fetch()
        assert case.arrived()
        assert case.ranges() == [None]

    def test_a_part_of_another_content_is_not_touched(self, case):
        other = case.part.with_name(f"{NAME}.0123456789abcdef.part")
        other.parent.mkdir(parents=True)
        other.write_bytes(b"another revision's")
        case.fetch()
        assert case.target.read_bytes() == case.content
        assert other.read_bytes() == b"another revision's"

    def test_a_link_in_the_place_of_the_part_is_not_followed(self, case, tmp_path):
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        case.part.parent.mkdir(parents=True)
        case.part.symlink_to(victim)
        with pytest.raises(OSError, match="symbolic links"):
            case.fetch()
        assert victim.read_bytes() == b"precious"

    def test_goes_on_although_the_branch_has_moved(self, case):
        case.keep(1000)
        case.folder.rename(case.folder.with_name("m@old"))
        add_model(case.server.store.root, "o/m", TENSORS, seed=9)
        case.fetch()
        assert case.arrived()


class TestFaults:
    @pytest.mark.parametrize("after", [0, 1, 65536, 400_000])
    def test_a_dropped_connection_goes_on_where_it_was(self, case, after):
        case.server.fault("/_cdn/", "drop", after=after)
        case.fetch()
        assert case.arrived()
        assert case.ranges() == [None, f"bytes={after}-" if after else None]
        assert case.sent() == len(case.content)

    def test_many_drops(self, case):
        case.server.fault("/_cdn/", "drop", after=100_000, times=6)
        case.fetch(retries=0)
        assert case.arrived()
        assert case.sent() == len(case.content)

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_a_busy_server_is_waited_for(self, case, status):
        case.server.fault("/resolve/", "status", status=status, headers={"Retry-After": "4"})
        case.server.fault("/_cdn/", "status", status=status, headers={"Retry-After": "5"})
        case.fetch()
        assert case.arrived()
        assert case.waits == [4, 5]

    def test_storage_that_refuses_an_old_link_is_asked_anew(self, case):
        case.server.fault("/_cdn/", "status", status=403)
        case.fetch()
        assert case.arrived()
        assert len(case.server.requests("/resolve/")) == 2

    def test_a_server_that_hangs(self, case, monkeypatch):
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.2")
        case.server.fault("/_cdn/", "hang", seconds=0.5)
        case.fetch()
        assert case.arrived()
        assert any("ReadTimeout" in line for line in case.lines)

    def test_a_server_that_stops_in_the_middle(self, case, monkeypatch):
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.2")
        case.server.fault("/_cdn/", "pause", after=200_000)
        case.fetch()
        assert case.arrived()
        assert case.ranges() == [None, "bytes=200000-"]

    def test_a_server_that_ignores_ranges(self, case):
        case.keep(1000)
        case.server.fault("/_cdn/", "norange")
        case.fetch()
        assert case.arrived()
        assert case.sent() == len(case.content)

    def test_a_server_that_sends_another_range(self, case):
        case.keep(1000)
        case.server.fault("/_cdn/", "wrongrange")
        case.fetch()
        assert case.arrived()
        assert case.ranges() == ["bytes=1000-", None]

    def test_a_range_that_the_server_does_not_have(self, case):
        case.keep(1000)
        case.server.fault("/_cdn/", "status", status=416)
        case.fetch()
        assert case.arrived()
        assert case.ranges() == ["bytes=1000-", None]

    def test_wrong_bytes_once(self, case):
        case.server.fault("/_cdn/", "corrupt")
        case.fetch()
        assert case.arrived()
        assert case.ranges() == [None, None]
        assert any("another hash; starting over" in line for line in case.lines)

    def test_wrong_bytes_always(self, case):
        case.server.fault("/_cdn/", "corrupt", times=99)
        text = case.told()
        assert text.startswith(f"o/m@{case.commit[:12]}/{NAME}: is not what the lock names, twice")
        assert len(case.ranges()) == 2
        assert list(case.target.parent.iterdir()) == []

    def test_a_file_of_another_size(self, case):
        case.locked = LockedFile(len(case.content) + 5, sha256=case.entry.sha256)
        assert "the server has 614520 bytes instead of 614525" in case.told()
        assert list(case.target.parent.iterdir()) == []

    def test_nothing_ever_comes(self, case):
        case.server.fault("/_cdn/", "status", status=503, times=99)
        text = case.told(retries=3)
        assert "gave up after 4 attempts in a row without a byte" in text
        assert "the Hub answers HTTP 503" in text
        assert len(case.waits) == 3
        assert case.waits == sorted(case.waits)

    def test_no_network(self, case, monkeypatch):
        case.keep(1000)
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        text = case.told(retries=1)
        assert "does not answer" in text
        assert "1.00 kB of 615 kB are kept; run again to go on from there." in text
        assert case.part.stat().st_size == 1000

    def test_the_file_is_gone_from_the_hub(self, case):
        case.entry.file.rename(case.folder / "other.safetensors")
        case.commit = case.server.store.commit_of("o/m", case.folder)
        assert "is not there (HTTP 404)" in case.told()

    def test_the_commit_is_gone_from_the_hub(self, case):
        case.commit = "0" * 40
        assert f"has no revision '{'0' * 40}'" in case.told()

    def test_redirect_signatures_are_not_told(self, case):
        case.server.fault("/_cdn/", "status", status=404)
        assert "secret-of-the-redirect" not in case.told()


class TestGated:
    def test_without_and_with_a_token(self, case, monkeypatch):
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
    def test_says_so_and_keeps_the_part(self, case, monkeypatch, number, words):
        write = os.pwrite

        def limited(fd, data, offset):
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


class TestFileSystemsWithoutLocks:
    @pytest.fixture
    def unlocked(self, case, monkeypatch):
        def refused(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refused)
        return case

    def test_fetches(self, unlocked):
        unlocked.fetch()
        assert unlocked.arrived()

    def test_resumes_after_a_drop(self, unlocked):
        unlocked.server.fault("/_cdn/", "drop", after=100_000)
        unlocked.fetch()
        assert unlocked.arrived()

    def test_starts_over_without_harm_to_another_writer(self, unlocked):
        unlocked.keep(1000)
        with open(unlocked.part, "rb") as other:
            unlocked.server.fault("/_cdn/", "norange")
            unlocked.fetch()
            assert len(other.read()) == 1000
        assert unlocked.arrived()

    def test_a_second_writer_was_faster(self, unlocked, monkeypatch):
        publish = partfile.files.publish

        def twice(part, target):
            publish(part, target)
            publish(part, target)

        monkeypatch.setattr(partfile.files, "publish", twice)
        unlocked.fetch()
        assert unlocked.arrived()
