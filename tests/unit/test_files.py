"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardmerge.files import load_json, write_json, write_text


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
