"""Names from strangers: which are taken, and how those that are told reach a terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.models import llama
from shardmerge.base.claimfile import create
from shardmerge.base.claims import part_path
from shardmerge.base.errors import UserError
from shardmerge.base.filenames import all_plain, is_commit, is_repo, safe_name, safe_tensor
from shardmerge.base.identities import Identities
from shardmerge.base.printable import is_printable, printable, printable_lines
from shardmerge.base.safetensors import Header, TensorEntry
from shardmerge.recipe.naming import slug
from shardmerge.recipe.references import parse_reference
from shardmerge.report.terminal import Terminal
from shardmerge.run import cli
from shardmerge.sources.checkpoint_files import INDEX, parse_weight_map, tensor_table
from shardmerge.sources.locking import lock_folder

GOOD = (
    *("model.safetensors", "a/b/c.json", "with blank.json", " x", "it's.json", "$(touch x).json"),
    *("a;b&c|d.json", "é中.json", "a" * 200, "/".join(["a" * 99] * 10), "x-y", "..a", "a..", "~"),
    *("*?[x].json", "`x`", '"x"', "x/a:b", "x" + "\u00a0" + "y"),
)
BAD = (
    *("", "/x", "x/", "a//b", ".", "./x", "../x", "a/../b", "a\\b", "C:x", "C:/x", "-x", "a/-x"),
    *("--option", "{x}", "a}", "x\ny", "x\ty", "x\x00", "x\x1b[2J", "x\x7f", "x\x9b", "\u202ex"),
    *("x\u200b", "x\u2066y", "x\u2028y", "\ufeffx", "\ud800", "x\udfff", "\U000e0041"),
    *("a" * 201, "é" * 101, "/".join(["a" * 99] * 11), "x.part", "x.claim", "x.new", "a.part/b"),
    *(None, 3, b"x", ["x"]),
)
UNSEEN = ("\x1b[31m", "\r", "\x00", "\x9b1m", "\u202e", "\u2066", "\u200f", "\u2028", "\ud800")


class TestFiles:
    @pytest.mark.parametrize("name", GOOD)
    def test_taken(self, name: str, tmp_path: Path) -> None:
        assert safe_name(name, tmp_path, "w") == name

    @pytest.mark.parametrize("name", BAD)
    def test_refused(self, name: object) -> None:
        with pytest.raises(UserError, match=r"^index: names a file") as told:
            safe_name(name, None, "index")
        assert is_printable(str(told.value))
        assert len(str(told.value)) < 400

    def test_the_longest_has_room_for_what_is_made_beside_it(self, tmp_path: Path) -> None:
        name = safe_name("a" * 200, None, "w")
        target = tmp_path / name
        ticket = target.with_name(f".{name}.claim.{'0' * 12}")
        assert create(ticket, "{}")  # makes a fresh file beside the ticket
        for made in (
            part_path(target),
            tmp_path / f"{name}.log",
            tmp_path / f"{name}.{'0' * 16}.part",
        ):
            made.touch()

    def test_links_out_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m/x").symlink_to("/etc/passwd")
        with pytest.raises(UserError, match="link out"):
            safe_name("x", tmp_path / "m", "w")

    def test_side_files_of_a_folder(self, tmp_path: Path) -> None:
        llama(tmp_path / "m", 0, layers=1)
        (tmp_path / "m/a b's $(x).txt").touch()
        locked = lock_folder(tmp_path / "m", "m", Identities(tmp_path / "cache"))
        assert "a b's $(x).txt" in locked.files
        (tmp_path / "m/a\x1b[2J.txt").touch()
        with pytest.raises(UserError, match=r"a\\x1b\[2J\.txt.*do not show"):
            lock_folder(tmp_path / "m", "m", Identities(tmp_path / "cache"))

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        llama(tmp_path / "m", 0, layers=1)
        (tmp_path / "m" / os.fsdecode(b"\xff.txt")).touch()
        with pytest.raises(UserError, match=r"\\udcff\.txt"):
            lock_folder(tmp_path / "m", "m", Identities(tmp_path / "cache"))


class TestTensors:
    @pytest.mark.parametrize("name", ["", "x\ny", "x\x1b[2J", "\u202e", "\ud800", "x" * 1001])
    def test_refused(self, name: str) -> None:
        entry = TensorEntry("F16", (), 8, 10)
        header = Header({name: entry}, {}, 8, "")
        for call in (
            lambda: safe_tensor(name, "w"),
            lambda: parse_weight_map({"weight_map": {name: "a"}}, "w"),
            lambda: tensor_table({"a": header}, None, "w"),
        ):
            with pytest.raises(UserError, match=r"w.*: names a tensor") as told:
                call()
            assert is_printable(str(told.value))

    def test_taken(self) -> None:
        for name in ("model.layers.0.mlp.up_proj.weight", "a b", "é"):
            assert safe_tensor(name, "w") == name


class TestRepositories:
    @pytest.mark.parametrize("name", ["o/m", "01-ai/Yi.6B_x", "a" * 96 + "/" + "b" * 96])
    def test_taken(self, name: str) -> None:
        assert is_repo(name)
        assert parse_reference(name).is_hub_name

    @pytest.mark.parametrize(
        "name", ["m", "a/b/c", "o/m $(x)", "-o/m", "o/-m", "o/..", "ö/m", "o/m\n", "o/" + "m" * 97]
    )
    def test_refused(self, name: str) -> None:
        assert not is_repo(name)

    def test_folders_of_long_references(self) -> None:
        long = [f"{'é' * 200}/{end}" for end in "ab"]
        for name in (*long, "/" + "x/" * 400, "o/" + "m" * 96, "a--b" * 50):
            assert len(slug(name).encode()) <= 100
        assert slug(long[0]) != slug(long[1])
        most = "".join(map(str, range(60)))[:90]
        assert slug(f"o/{most}") == f"o--{most}"
        assert slug("o/m") == "o--m"

    def test_commits(self) -> None:
        assert is_commit("0123456789abcdef" * 2 + "01234567")
        for other in ("main", "A" * 40, "0" * 39, "0" * 41, "0" * 40 + "\n", None, 3):
            assert not is_commit(other)

    def test_references_are_text(self) -> None:
        for text in UNSEEN:
            with pytest.raises(UserError, match="do not show") as told:
                parse_reference(f"o/m{text}")
            assert is_printable(str(told.value))


class TestTerminal:
    @pytest.mark.parametrize("text", UNSEEN)
    def test_what_a_terminal_acts_upon_is_shown(self, text: str) -> None:
        shown = printable(f"a{text}b")
        assert is_printable(shown)
        assert shown.startswith("a\\")
        assert shown.endswith("b")
        shown.encode()

    def test_what_shows_is_left_alone(self) -> None:
        for text in ("", "plain", "é 中 🙂", "a\u00a0b", "\\x1b"):
            assert printable(text) == text
        assert printable("a\nb\tc") == r"a\nb\tc"
        assert printable_lines("a\x1b\nb") == "a\\x1b\nb"
        assert printable("\U000e0041") == r"\U000e0041"

    def test_errors(self) -> None:
        error = UserError("\x1b[2J\nerror: all is well", "\u202ename", "\ud800 hint\r")
        message, hint = str(error).split("\n")
        assert is_printable(message) and is_printable(hint)
        assert str(UserError("two tasks failed\n  a: x\n  b: y\rz")).count("\n  ") == 2
        assert error.message.startswith("\x1b")  # as it was, for who asks

    def test_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        cli.say("a\x1b[2J\nb")
        cli.tell("a\u202e")
        assert capsys.readouterr().err == "a\\x1b[2J\\nb\nshardmerge: a\\u202e\n"

    def test_colours_are_ours_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Terminal, "of", classmethod(lambda cls, stream: cls(colour=True)))
        for text, shown in {
            "name": "\x1b[1mname\x1b[0m\n",
            "\x1b[1mna\x1b[8mme": "\\x1b[1mna\\x1b[8mme\n",
        }.items():
            out = io.StringIO()
            monkeypatch.setattr(sys, "stdout", out)
            cli.show(lambda terminal, text=text: terminal.bold(text) + "\n")
            assert out.getvalue() == shown

    def test_a_command_line(self, tmp_path: Path) -> None:
        """A hostile recipe is explained, or refused, on a terminal that knows ASCII alone."""
        recipe = tmp_path / "r\x1b[2J.yaml"
        recipe.write_text(
            'name: "é"\nmerge_method: linear\nmodels: [{model: "o/m\\u202e\\e[2J"}]\n'
        )
        script = Path(cli.__file__).parents[2] / "explain.py"
        for text in (recipe.read_text(), recipe.read_text().replace("\\u202e\\e[2J", "")):
            recipe.write_text(text)
            done = subprocess.run(
                [sys.executable, script, recipe],
                env={**os.environ, "PYTHONIOENCODING": "ascii"},
                capture_output=True,
                text=True,
            )
            for stream in (done.stdout, done.stderr):
                assert "Traceback" not in stream
                assert is_printable(stream.replace("\n", ""))


class TestIndex:
    def test_a_files_name(self, tmp_path: Path) -> None:
        llama(tmp_path / "m", 0, layers=2, files=2)
        path = tmp_path / "m" / INDEX
        index = json.loads(path.read_text())
        tensor = next(iter(index["weight_map"]))
        index["weight_map"][tensor] = "x\u202e.safetensors"
        path.write_text(json.dumps(index))
        with pytest.raises(UserError, match=rf"{INDEX}:\d+: .*u202e"):
            lock_folder(tmp_path / "m", "m", Identities(tmp_path / "cache"))


class TestManyNames:
    """One look at all names of a file: what it takes, a look at each of them takes too."""

    def test_plain_ones_are_plain(self) -> None:
        assert all_plain(["model.layers.0.mlp.up_proj.weight", "lm_head", "a-b_c.9999.d"])

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "",
                "x\ny",
                "x\n",
                "\n",
                "x\x1b",
                "\u202ex",
                "é",
                "a" * 1001,
                "1_Dense/weight",
                "a/b",
            ),
            *("layers.12345.x", "a b"),
        ],
    )
    def test_others_are_looked_at_one_by_one(self, name: str) -> None:
        assert not all_plain(["a.weight", name])
        assert not all_plain([name, "a.weight"])
        assert not all_plain([name])

    def test_no_names_are_not_plain(self) -> None:
        assert not all_plain([])
