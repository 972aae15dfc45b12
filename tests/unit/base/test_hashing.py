"""A file's hash is the same however it is read: past the page cache, through it, on any system."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path

import pytest
import xxhash

from shardmerge.base import direct, hashing
from shardmerge.base.errors import UserError
from shardmerge.base.hashing import FileHash, bound_hash, hasher_like, quick_hasher

#: Sizes about those of a page and of what is read at once.
SIZES = (0, 1, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (4 << 20) - 1, 4 << 20, (8 << 20) + 17)
SIZES += (16 << 20, (29 << 20) + 5)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_all_bytes_count(tmp_path: Path, size: int, keep: bool) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    for hasher, digest in (
        (None, hashlib.sha256(data).hexdigest()),
        (quick_hasher(), xxhash.xxh3_128(data).hexdigest()),
    ):
        with FileHash(tmp_path / "a", hasher, keep=keep) as found:
            assert found.result().hexdigest() == digest
        assert hasher_like(digest).name == (hasher or hashlib.sha256()).name


@pytest.mark.skipif(not direct._DIRECT, reason="this system reads nothing directly")
@pytest.mark.parametrize("at", ["open", "first", "fifth"])
def test_file_system_that_reads_nothing_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """It refuses when the file is opened, or not before it is read."""
    data = os.urandom(29_000_001)
    (tmp_path / "a").write_bytes(data)
    real_open, real_read, refused = os.open, hashing.read_into, []
    last = {"open": 0, "first": 0, "fifth": 4 * hashing._DIRECT_CHUNK}[at]

    def open_(path: os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        if at == "open" and flags & direct._DIRECT:
            refused.append(path)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, mode)

    def read(fd: int, into: memoryview, offset: int) -> int:
        if at != "open" and offset >= last and fcntl.fcntl(fd, fcntl.F_GETFL) & direct._DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_read(fd, into, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(hashing, "read_into", read)
    with FileHash(tmp_path / "a") as found:
        assert found.result().hexdigest() == hashlib.sha256(data).hexdigest()
    assert refused


def test_reads_that_end_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(29_000_001)
    (tmp_path / "a").write_bytes(data)
    real, overtaken = hashing.read_into, threading.Event()

    def read(fd: int, into: memoryview, offset: int) -> int:
        if offset:
            overtaken.set()
        else:
            overtaken.wait(60)
        return real(fd, into, offset)

    monkeypatch.setattr(hashing, "read_into", read)
    monkeypatch.setattr(hashing, "open_direct", lambda path, flags: (os.open(path, flags), True))
    with FileHash(tmp_path / "a") as found:
        assert found.result().hexdigest() == hashlib.sha256(data).hexdigest()
    assert overtaken.is_set()


@pytest.mark.parametrize("last", [0, 3 << 22])
def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    (tmp_path / "a").write_bytes(bytes(29_000_001))
    real = hashing.read_into

    def read(fd: int, into: memoryview, offset: int) -> int:
        if offset >= last:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, into, offset)

    monkeypatch.setattr(hashing, "read_into", read)
    with FileHash(tmp_path / "a") as found, pytest.raises(UserError, match="Input/output error"):
        found.result()


@pytest.mark.parametrize("keep", [True, False])
def test_excerpts_are_kept(tmp_path: Path, keep: bool) -> None:
    """Wherever they lie as to what is read at once; several can be asked for."""
    data = os.urandom((9 << 20) + 17)
    (tmp_path / "a").write_bytes(data)
    some = [(0, 10), (11, 1), ((1 << 20) - 5, 10), ((4 << 20) - 3, 5), ((4 << 20) + 2, 5 << 20)]
    with FileHash(tmp_path / "a", keep=keep, excerpts=some) as found:
        for ranges in (some[2:4], some[:1], some[4:], some):
            expected = b"".join(data[first : first + size] for first, size in ranges)
            assert found.excerpt(ranges) == expected
        assert found.result().hexdigest() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_hasher_that_fails_is_told_by_whoever_has_its_turn(
    tmp_path: Path, at: int, keep: bool
) -> None:
    (tmp_path / "a").write_bytes(os.urandom(29 << 20))

    class Failing:
        name, seen = "failing", 0

        def update(self, data: object) -> None:
            self.seen += 1
            if self.seen >= at:
                raise MemoryError

        def hexdigest(self) -> str:
            return ""

    with pytest.raises(MemoryError), FileHash(tmp_path / "a", Failing(), keep=keep) as found:
        found.result()


def test_excerpts_of_a_file_that_was_cut(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    beyond = [(90, 20)]
    for name, told in (("a", "ends before byte 110"), ("b", "cannot be read")):
        found = FileHash(tmp_path / name, excerpts=beyond)
        with found, pytest.raises(UserError, match=told):
            found.excerpt(beyond)


def test_hash_tells_a_change_of_either() -> None:
    def bound(data: bytes, sha256: str) -> str:
        hasher = quick_hasher()
        hasher.update(data)
        return bound_hash(hasher, sha256)

    assert len({bound(b"a", "0" * 64), bound(b"b", "0" * 64), bound(b"a", "1" * 64)}) == 3
