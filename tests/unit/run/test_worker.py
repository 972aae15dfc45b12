"""Jobs that share a process with modules loaded behave as if they ran by themselves."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.shared_processes import SCRIPTS, run_name, serve, until, until_reachable
from shardmerge.run import worker

SCRIPT = f"""
import atexit, os, signal, sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
from shardmerge.run.worker import TORCH, delegate, process_began

def main(what, file):
    with open(file, "w") as out:
        print(os.getpid(), os.getcwd(), os.environ["MARK"], "torch" in sys.modules, file=out)
    print("to stdout"); print("to stderr", file=sys.stderr)
    assert 0 < time.perf_counter() - process_began() < 60
    atexit.register(lambda: open(file + ".end", "w").close())
    if what == "fail":
        sys.exit(7)
    if what == "raise":
        raise ValueError("seen")
    if "wait" in what:
        def end(*_):
            open(file + ".term", "w").close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, end)
        open(file + ".ready", "w").close()
        for _ in range(600):  # a signal just before a sleep waits for its end
            time.sleep(0.1)

if __name__ == "__main__":
    delegate()
    if "torch" in sys.argv[1]:
        delegate(TORCH)
    main(*sys.argv[1:])
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    """Shared processes of both kinds that live as long as the tests do: (name, plain, torch)."""
    name = run_name()
    processes = [serve(name, kind) for kind in (worker.PLAIN, worker.TORCH)]
    yield name, *processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def start(tmp_path: Path, served: tuple[Any, ...]) -> Any:
    """Start a job in a folder of its own; return its process."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(what: Any, name: Any = served[0]) -> Any:
        return subprocess.Popen(
            [sys.executable, tmp_path / "script.py", what, "found"],
            env=os.environ | {worker.WORKER_VARIABLE: name, "MARK": "mine"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


class TestRequests:
    """What a fork is asked for comes over as it is."""

    @pytest.mark.parametrize("at", [None, 12.25, -0.1])
    @pytest.mark.parametrize("words", [["merge.py"], ["a b", "", "c=d\n", "\udcff é", "-"]])
    def test_all_comes_back(self, words: list[str], at: float | None) -> None:
        environment = {"A": "", "B": "x=y\n", "C d": "\udcfe é"}
        request = worker.pack_request(words, "/a\n b\udcfd", environment, at)
        assert worker.unpack_request(request) == (words, "/a\n b\udcfd", environment, at)

    def test_one_that_is_too_long(self) -> None:
        with pytest.raises(OSError, match="too long"):
            worker.pack_request(["x" * worker.MOST], "/", {}, None)


class TestExpect:
    """The process is started before there are jobs, where it can be foreseen that there will be."""

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        names = []
        monkeypatch.setattr(worker, "_start", lambda *one: names.append(one))
        return names

    def test_a_missing_file_starts_it_once(self, started: list[Any], tmp_path: Path) -> None:
        run = worker.Worker(12, expects=True)
        run.expect([__file__], torch=True)
        assert started == []
        run.expect([__file__, str(tmp_path / "missing")], torch=False)
        run.expect([str(tmp_path / "missing")], torch=False)
        assert started == [("12", "plain")]

    def test_torch_where_jobs_need_it(self, started: list[Any], tmp_path: Path) -> None:
        worker.Worker(12, expects=True).expect([str(tmp_path / "missing")], torch=True)
        assert started == [("12", "plain"), ("12", "torch")]

    @pytest.mark.parametrize(("name", "expects"), [(None, True), (12, False)])
    def test_no_jobs_are_foreseen(
        self, started: list[Any], tmp_path: Path, name: int | None, expects: bool
    ) -> None:
        worker.Worker(name, expects=expects).expect([str(tmp_path / "missing")], torch=True)
        assert started == []

    def test_foreseen_jobs_start_it_before_their_files_are_known(
        self, started: list[Any], tmp_path: Path
    ) -> None:
        worker.Worker(12, expects=False).foresee()
        assert started == []
        run = worker.Worker(12, expects=True)
        run.foresee()
        assert started == [("12", "plain")]
        run.expect([str(tmp_path / "missing")], torch=True)
        assert started == [("12", "plain"), ("12", "torch")]

    def test_jobs_are_told_its_name(self) -> None:
        assert worker.Worker(12, expects=False).prefix == f"export {worker.WORKER_VARIABLE}=12; "
        assert worker.Worker(None, expects=True).prefix == ""


def in_main(script: Path) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Return what a script imports when it is read, and what when its job begins."""
    body = ast.parse(script.read_text()).body
    imports = (ast.Import, ast.ImportFrom)
    (main,) = (one for one in body if isinstance(one, ast.FunctionDef) and one.name == "main")
    inner = [one for one in ast.walk(main) if isinstance(one, imports)]
    return [one for one in body if isinstance(one, imports)], inner


def loaded_by(code: str) -> list[str]:
    """Return what a list called `loaded` holds after code ran in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n{code}\nprint(*loaded)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.split()


class TestImports:
    """A job's first process loads little, and the process it is forked from has the rest."""

    DELEGATED = tuple(
        path for path in sorted(SCRIPTS.glob("*.py")) if "start_job(" in path.read_text()
    )
    #: Of nearly every build.
    USUAL = ("merge", "check_shard", "copy_file", "write_config", "write_index", "write_card",
             "verify_model", "write_provenance", "write_checksums")  # fmt: skip

    def test_the_first_process_loads_little(self) -> None:
        loaded = loaded_by(
            "before = set(sys.modules); import shardmerge.run.worker\n"
            "loaded = set(sys.modules) - before"
        )
        ours = {name for name in loaded if name.startswith("shardmerge")}
        assert ours == {"shardmerge", "shardmerge.run", "shardmerge.run.worker"}
        slow = {"argparse", "collections", "contextlib", "dataclasses", "enum", "json", "pathlib"}
        slow |= {"re", "select", "signal", "socket", "subprocess", "typing"}
        assert not slow & set(loaded)

    @pytest.mark.parametrize("script", DELEGATED, ids=lambda path: path.stem)
    def test_scripts_import_nothing_else_before_their_job_begins(self, script: Path) -> None:
        at_once, _ = in_main(script)
        modules = {one.module for one in at_once if isinstance(one, ast.ImportFrom)}
        assert modules == {"__future__", "shardmerge.run.worker"}
        assert len(at_once) == 2

    def test_forks_of_usual_jobs_find_all_modules_loaded(self) -> None:
        lines = [
            ast.unparse(one) for name in self.USUAL for one in in_main(SCRIPTS / f"{name}.py")[1]
        ]
        loaded = loaded_by(
            "from shardmerge.run.forking import _PRELOADED\n"
            "for module in _PRELOADED['plain']: __import__(module)\n"
            "before = set(sys.modules)\n"
            + "\n".join(lines)
            + "\nloaded = set(sys.modules) - before"
        )
        assert loaded == []


class TestDelegate:
    @pytest.mark.parametrize(("what", "loaded"), [("work", "False"), ("torch", "True")])
    def test_runs_in_a_fork(
        self,
        start: Callable[..., Any],
        tmp_path: Path,
        served: tuple[Any, ...],
        what: str,
        loaded: str,
    ) -> None:
        job = start(what)
        assert [part.strip() for part in job.communicate()] == ["to stdout", "to stderr"]
        assert job.returncode == 0
        pid, folder, mark, torch = (tmp_path / "found").read_text().split()
        assert int(pid) not in (job.pid, served[1].pid, served[2].pid)
        assert (folder, mark, torch) == (str(tmp_path), "mine", loaded)
        assert (tmp_path / "found.end").exists()

    @pytest.mark.parametrize(("what", "status"), [("fail", 7), ("raise", 1)])
    def test_status_is_passed_on(self, start: Callable[..., Any], what: str, status: int) -> None:
        job = start(what)
        assert ("seen" in job.communicate()[1]) == (what == "raise")
        assert job.returncode == status

    @pytest.mark.parametrize("what", ["wait", "wait torch"])
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_end_of_the_job_is_orderly(
        self, start: Callable[..., Any], tmp_path: Path, what: str, number: Any
    ) -> None:
        job = start(what)
        until((tmp_path / "found.ready").exists)
        job.send_signal(number)
        job.communicate()
        assert job.returncode == 128 + signal.SIGTERM
        assert (tmp_path / "found.term").exists()

    @pytest.mark.parametrize("what", ["wait", "wait torch"])
    def test_killed_job_takes_its_fork_along(
        self, start: Callable[..., Any], tmp_path: Path, what: str
    ) -> None:
        job = start(what)
        until((tmp_path / "found.ready").exists)
        pid = int((tmp_path / "found").read_text().split()[0])
        job.kill()
        job.communicate()
        assert job.returncode == -signal.SIGKILL
        until((tmp_path / "found.term").exists)
        until(lambda: not Path(f"/proc/{pid}").exists())

    def test_jobs_at_the_same_time(self, start: Callable[..., Any]) -> None:
        jobs = [start("work") for _ in range(4)]
        assert [(job.communicate(), job.returncode)[1] for job in jobs] == [0] * 4

    def test_a_name_that_cannot_be_an_address(
        self, start: Callable[..., Any], tmp_path: Path
    ) -> None:
        job = start("work", "n" * 200)
        job.communicate()
        assert job.returncode == 0
        pid, _, _, torch = (tmp_path / "found").read_text().split()
        assert (int(pid), torch) == (job.pid, "False")

    def test_killed_server(self, start: Callable[..., Any], tmp_path: Path) -> None:
        """Whoever waits for it runs by itself; the next job starts another."""
        name = run_name()
        server = serve(name)
        until_reachable(name)
        server.send_signal(signal.SIGSTOP)
        job = start("work", name)
        until(lambda: Path("/proc/net/unix").read_text().count(name) > 1)
        server.kill()
        server.wait()
        job.communicate()
        assert job.returncode == 0
        assert int((tmp_path / "found").read_text().split()[0]) == job.pid


def test_a_job_finds_the_machine_code_of_those_before_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from shardmerge.run.worker import delegate\n"
        "delegate()\n"
        "from shardmerge.engine import machine_code\n"
        "before = len(machine_code._CODE._functions)\n"
        "head = 'define void @merge(ptr %a, ptr %b, i64 %c, ptr %d, ptr %e)'\n"
        "machine_code.compiled(head + '{\\n ret void\\n}')(None, None, 0, None, None)\n"
        "print(before, len(machine_code._CODE._functions))\n"
    )
    env = os.environ | {worker.WORKER_VARIABLE: run_name()}
    found = [
        subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
        for _ in range(3)
    ]
    assert [done.stdout for done in found] == ["0 1\n", "1 1\n", "1 1\n"], found[0].stderr


@pytest.mark.slow
def test_jobs_that_quantise_find_their_library_loaded(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from shardmerge.run.worker import COMPRESSED, TORCH, delegate\n"
        "delegate(COMPRESSED)\n"
        "loaded = 'compressed_tensors' in sys.modules\n"
        "delegate(TORCH)  # it has torch, so the job stays\n"
        "print(loaded)\n"
    )
    env = os.environ | {worker.WORKER_VARIABLE: run_name()}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


class TestServe:
    def test_ends_with_the_run(self, start: Callable[..., Any], tmp_path: Path) -> None:
        with subprocess.Popen(["sleep", "600"]) as run:
            name = run_name(run.pid)
            server = serve(name)
            until_reachable(name)
            job = start("wait", name)
            until((tmp_path / "found.ready").exists)
            run.kill()
            run.wait()
            time.sleep(0.2)
            assert server.poll() is None  # its last job is not done
            job.terminate()
            job.communicate()
            assert server.wait(300) == 0

    def test_of_a_run_that_is_over(self) -> None:
        with subprocess.Popen(["true"]) as run:
            run.wait()
        assert serve(run_name(run.pid)).wait(300) == 0

    def test_one_for_a_run(self, served: tuple[Any, ...]) -> None:
        until_reachable(served[0])
        assert serve(served[0]).wait(300) == 0
