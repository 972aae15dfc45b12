"""Lists of files reach a job through a file, whatever their length and names."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.run.inputlists import keep_lists, list_path, parse_args

ODD = ["$(touch PWNED)", "it's", "-x", "--inputs=y", "@file", "a b", "é模"]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give what a script with the options --sources and --deltas makes of its command line."""
    monkeypatch.chdir(tmp_path)

    def parse(*arguments: str) -> argparse.Namespace:
        monkeypatch.setattr("sys.argv", ["script.py", *arguments])
        parser = argparse.ArgumentParser()
        parser.add_argument("--sources", nargs="+", required=True)
        parser.add_argument("--deltas", nargs="*", default=[])
        parser.add_argument("--output")
        return parse_args(parser)

    return parse


class TestInputs:
    def test_any_names(self, given: Callable[..., Any]) -> None:
        path = keep_lists({"sources": ODD, "deltas": []})
        args = given("--inputs", path, "--output=o")
        assert args.sources == [f"./{n}" if n.startswith("-") else n for n in ODD]
        assert (args.deltas, args.output) == ([], "o")

    def test_more_than_a_command_line_holds(self, given: Callable[..., Any]) -> None:
        files = [f"{n:0200}" for n in range(20_000)]
        assert given(f"--inputs={keep_lists({'sources': files})}").sources == files

    def test_by_hand(self, given: Callable[..., Any]) -> None:
        args = given("--sources", "a", "b", "--deltas", "c")
        assert (args.sources, args.deltas) == (["a", "b"], ["c"])

    def test_each_content_has_its_place(self, given: Callable[..., Any]) -> None:
        one, other = {"sources": ["a", "b"]}, {"sources": ["b", "a"]}
        assert keep_lists(one) == keep_lists(one) != keep_lists(other)
        assert json.loads(list_path(one).read_text()) == one

    @pytest.mark.parametrize("text", ["", "{", '{"sources": []}', "\udcff"])
    def test_a_damaged_one_is_written_again(self, given: Callable[..., Any], text: str) -> None:
        lists = {"sources": ["a"]}
        keep_lists(lists)
        list_path(lists).write_text(text, errors="surrogateescape")
        assert given("--inputs", keep_lists(lists)).sources == ["a"]

    @pytest.mark.parametrize("text", ["[]", '{"sources": "a"}', '{"sources": [1]}', "{"])
    def test_a_file_that_is_none(
        self, given: Callable[..., Any], tmp_path: Path, text: str
    ) -> None:
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=r"^x\.json: "):
            given("--inputs", "x.json")

    def test_what_is_missing_is_told(
        self, given: Callable[..., Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            given("--inputs", keep_lists({"deltas": ["a"]}))
        assert "--sources" in capsys.readouterr().err
