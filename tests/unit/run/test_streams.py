"""A forked job's standard streams are those that an interpreter of its own would open."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from helpers.shared_processes import SCRIPTS, run_name, serve, until_reachable
from shardmerge.run import worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

#: Writes by every way there is, and more than buffers take.
SCRIPT = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
from shardmerge.run.worker import TORCH, delegate

delegate()
print("before torch is asked for")
if "torch" in sys.argv:
    delegate(TORCH)
import ctypes, os, subprocess
from shardmerge.run.cli import run

def described(stream):
    buffer = stream.buffer
    raw = getattr(buffer, "raw", buffer)
    return (stream.name, stream.mode, stream.encoding, stream.errors, stream.newlines,
            stream.line_buffering, stream.write_through, stream.isatty(), stream.seekable(),
            stream.fileno(), type(buffer).__name__, raw.name, raw.mode, raw.closefd)

def main():
    for prefix in ("", "__"):
        for name in ("stdin", "stdout", "stderr"):
            print(described(getattr(sys, prefix + name + prefix)))
    print("to stderr \\udcff \\u20ac", file=sys.stderr)
    print("read", ascii(sys.stdin.readline()))
    print("to stdout \\xe9 \\u20ac \\udcff")
    print("a line\\nand a part of one", end="")
    sys.stdout.flush()
    subprocess.run(["echo", " that another program ends"])
    os.write(1, b"past all buffers\\n")
    for number in range(3000):
        print("line", number)
    sys.stdout.flush()
    ctypes.CDLL(None).printf(b"of a library\\n")
    if "sentence" in sys.argv:
        sys.exit("a sentence")
    print("a last part", end="")
    print("and one of stderr", end="", file=sys.stderr)

run(main)
"""
#: What an interpreter takes from its environment.
ENVIRONMENTS = {
    "usual": {},
    "unbuffered": {"PYTHONUNBUFFERED": "1"},
    "latin": {"PYTHONIOENCODING": "latin-1:replace"},
    "ascii": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
Job = Callable[[int, int], int]


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    """The name of shared processes, and the environment that they and jobs have."""
    others = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    environment = others | ENVIRONMENTS[request.param]
    name = run_name()
    with tempfile.TemporaryFile("w+") as own:
        server = serve(name, before="print('of this process', end='')", env=environment, stdout=own)
        until_reachable(name)
        yield name, environment
        server.kill()
        server.wait()
        own.seek(0)
        assert own.read() == "of this process"


def to_files(job: Job) -> tuple[int, bytes, bytes]:
    """Run a job that writes to files, which have a line already; return its status and all."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        for file in (out, err):
            file.write(b"a line of before\n")
            file.flush()
        status = job(out.fileno(), err.fileno())
        return status, whole(out), whole(err)


def whole(file: IO[bytes]) -> bytes:
    """Return all that is in a file."""
    file.seek(0)
    return file.read()


def to_one_file(job: Job) -> tuple[int, bytes, bytes]:
    """Run a job that writes both to one file, as jobs of rules do."""
    with tempfile.TemporaryFile() as file:
        return job(file.fileno(), file.fileno()), whole(file), b""


def to_pipes(job: Job) -> tuple[int, bytes, bytes]:
    """Run a job that writes to pipes, which hold all of it; return its status and all."""
    out, err = os.pipe(), os.pipe()
    status = job(out[1], err[1])
    found = []
    for read, write in (out, err):
        os.close(write)
        with open(read, "rb") as file:
            found.append(file.read())
    return status, *found


def to_terminal(job: Job) -> tuple[int, bytes, bytes]:
    """Run a job that writes to a terminal; return its status and what is there."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    reading = subprocess.Popen(  # a terminal holds only some KB
        ["cat"], stdin=ours, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    os.close(ours)
    status = job(theirs, theirs)
    os.close(theirs)
    found = reading.communicate()[0]
    return status, found, b""


@pytest.mark.parametrize("words", [[], ["sentence"]], ids=str)
@pytest.mark.parametrize("target", [to_files, to_one_file, to_pipes, to_terminal])
def test_as_of_a_process_of_its_own(
    tmp_path: Path,
    served: tuple[str, dict[str, str]],
    target: Callable[[Job], tuple[int, bytes, bytes]],
    words: list[str],
) -> None:
    name, environment = served
    found = [target(started(tmp_path, words, environment | own)) for own in ({}, named(name))]
    assert found[0] == found[1]
    assert b"line 2999\n" in found[0][1]
    assert found[0][0] == len(words)


def test_what_is_written_before_a_job_goes_on_elsewhere(tmp_path: Path) -> None:
    """A job that finds that it needs torch has written something already."""
    name = run_name()
    servers = [serve(name, kind) for kind in (worker.PLAIN, worker.TORCH)]
    for kind in (worker.PLAIN, worker.TORCH):
        until_reachable(f"{name}-{kind}")
    status, out, err = to_pipes(started(tmp_path, ["torch"], dict(os.environ) | named(name)))
    for server in servers:
        server.kill()
        server.wait()
    lines = out.splitlines()
    assert lines[0] == b"before torch is asked for"
    # the script begins anew in the other process, where it says so again
    assert lines.count(lines[0]) == 2
    assert lines.index(b"line 0") > 2
    assert (status, err.count(b"to stderr")) == (0, 1)


def named(name: str) -> dict[str, str]:
    """Return what tells a job of shared processes."""
    return {worker.WORKER_VARIABLE: name}


def started(folder: Path, words: list[str], environment: dict[str, str]) -> Job:
    """Return what runs the job to its end, with stdout and stderr of the caller's."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    told = folder / "told"
    told.write_text("a line \xe9\r\nand another\n", "latin-1")

    def run(out: int, err: int) -> int:
        with told.open("rb") as given:
            command = [sys.executable, script, *words]
            done = subprocess.run(command, env=environment, stdin=given, stdout=out, stderr=err)
        return done.returncode

    return run
