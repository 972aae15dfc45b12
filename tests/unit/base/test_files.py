"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardmerge.base.errors import UserError
from shardmerge.base.files import (
    atomic_path,
    fill_ranges,
    load_json,
    near_path,
    read_text,
    sha256_of,
    write_json,
    write_text,
)
from shardmerge.run.cli import exit_on_user_error

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


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


#: What a disk may say, and what the user is told.
REFUSALS = {
    errno.ENOSPC: "the disk is full\n  Make room",
    errno.EDQUOT: "the disk quota is used up\n  Make room",
    errno.EFBIG: "files as large as this are not allowed",
    errno.EROFS: "the file system is read-only\n  Make it writable",
    errno.EACCES: "permission is denied\n  Give yourself",
    errno.EIO: "the disk reports an input/output error",
}


class TestRefused:
    """Whatever step the operating system refuses: one sentence, and nothing half-written."""

    @pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
    @pytest.mark.parametrize("step", ["mkdir", "open", "fchmod", "fsync", "replace"])
    def test_each_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str
    ) -> None:
        target = tmp_path / "new" / "a.txt"

        def refuse(*arguments: object, **_: object) -> None:
            named = [str(arguments[0])] if isinstance(arguments[0], (str, Path)) else []
            raise OSError(code, os.strerror(code), *named)

        if step != "mkdir":
            target.parent.mkdir()
            target.write_text("old")
        if step == "open":
            monkeypatch.setattr("shardmerge.base.files.open", refuse, raising=False)
        else:
            monkeypatch.setattr(os, step, refuse)
        with pytest.raises(UserError) as told:
            write_text(target, "new")
        monkeypatch.undo()
        assert str(told.value).startswith(f"{target}: cannot be written: {REFUSALS[code]}")
        left = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
        assert left == ([] if step == "mkdir" else ["new/a.txt"])
        assert step == "mkdir" or target.read_text() == "old"

    def test_errors_of_other_files_name_them(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a") as part:
            shutil.copyfile(tmp_path / "gone", part)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("job", ["writes", "copies"])
    def test_jobs_tell_it(self, tmp_path: Path, job: str) -> None:
        """As a job would run into it: the kernel refuses every file beyond 0 bytes."""
        commands = {
            "writes": "from shardmerge.base.files import write_text; write_text(path, 'x')",
            "copies": "import shutil; from shardmerge.base.files import atomic_path\n"
            "    with atomic_path(path) as part: shutil.copyfile(__file__, part)",
        }
        code = (
            "import resource, signal, sys\nfrom shardmerge.run.cli import run\n"
            f"def main():\n    path = sys.argv[1]\n    {commands[job]}\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nrun(main)\n"
        )
        program = tmp_path / "job.py"
        program.write_text(code)
        done = subprocess.run(
            [sys.executable, str(program), str(tmp_path / "out")],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "files as large as this are not allowed here" in done.stderr
        assert "Traceback" not in done.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["job.py"]

    def test_the_head_tells_it(self) -> None:
        @exit_on_user_error
        def call() -> None:
            raise OSError(errno.EROFS, "Read-only file system", "results/.run.claim")

        with pytest.raises(SystemExit, match=r"results/\.run\.claim: .*read-only"):
            call()


class TestRead:
    @pytest.mark.parametrize("read", [load_json, sha256_of])
    def test_what_cannot_be_read_is_a_sentence(self, tmp_path: Path, read: Callable) -> None:
        with pytest.raises(UserError, match=r"gone: cannot be read \(No such file or directory\)"):
            read(tmp_path / "gone")

    @pytest.mark.parametrize(
        ("written", "meant"),
        [("recipse/a.yaml", "recipes/a.yaml"), ("recipes/b.yaml", "recipes/a.yaml")],
    )
    def test_a_path_that_is_not_there(self, tmp_path: Path, written: str, meant: str) -> None:
        write_text(tmp_path / "recipes" / "a.yaml", "x")
        with pytest.raises(UserError) as told:
            read_text(tmp_path / written)
        assert told.value.hint == f"Did you mean {str(tmp_path / meant)!r}?"

    def test_nothing_is_guessed_that_is_not_there_either(self, tmp_path: Path) -> None:
        (tmp_path / "recipes").mkdir()
        assert near_path(tmp_path / "recipse" / "a.yaml") is None
        assert near_path(tmp_path / "quite-another" / "a.yaml") is None

    def test_a_hash(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")
        assert sha256_of(tmp_path / "a")[:8] == "ba7816bf"


@pytest.mark.parametrize("known", ["all", "some", "nothing", "not told"])
def test_ranges_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    """Whatever of it is in memory, and where the system does not tell."""
    data, real, asked = os.urandom(5000), os.preadv, []
    (tmp_path / "a").write_bytes(data)
    ranges = [(4000, 7), (0, 1), (10, 2000), (4990, 10)]

    def read(fd: int, into: list[memoryview], offset: int, flags: int = 0) -> int:
        asked.append(flags)
        if flags and known == "not told":
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        if flags and (known == "nothing" or (known == "some" and len(asked) > 2)):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(fd, into, offset)

    monkeypatch.setattr(os, "preadv", read)
    made = bytearray(sum(size for _, size in ranges))
    with (tmp_path / "a").open("rb") as file:
        fill_ranges(file.fileno(), tmp_path / "a", ranges, memoryview(made))
        assert made == b"".join(data[first : first + size] for first, size in ranges)
        assert known != "all" or len(asked) == len(ranges)
        with pytest.raises(UserError, match="ends before byte 5001"):
            fill_ranges(file.fileno(), tmp_path / "a", [(4999, 2)], memoryview(bytearray(2)))
