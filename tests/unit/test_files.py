"""Files appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shardmerge.errors import UserError
from shardmerge.files import load_json, sha256_of, write_json, write_text


class TestWrite:
    def test_json_comes_back(self, tmp_path: Path) -> None:
        write_json(tmp_path / "new" / "a.json", {"b": 1, "ä": [2]})
        assert load_json(tmp_path / "new" / "a.json") == {"b": 1, "ä": [2]}

    def test_an_error_leaves_what_was_there(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a.txt", "old")
        with pytest.raises(UnicodeEncodeError):
            write_text(tmp_path / "a.txt", "new \ud800")
        assert (tmp_path / "a.txt").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


class TestRead:
    @pytest.mark.parametrize("read", [load_json, sha256_of])
    def test_what_cannot_be_read_is_a_sentence(self, tmp_path: Path, read: Callable) -> None:
        with pytest.raises(UserError, match=r"gone: cannot be read \(No such file or directory\)"):
            read(tmp_path / "gone")

    def test_a_hash(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")
        assert sha256_of(tmp_path / "a")[:8] == "ba7816bf"
