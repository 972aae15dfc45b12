"""Runs of Snakemake in forks of processes that have it loaded, which takes half of a short run."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

#: Other people's modules that nearly every run loads. Each run loads the project's own by itself.
LOADED = tuple(
    "snakemake.cli difflib docutils.parsers.rst jinja2 jsonschema numpy PIL.Image pygments.lexers "
    "requests smart_open yaml yte".split()
)
#: Hashes of texts differ from one run to the next, as those of any two processes do.
SEEDS = ("1", "2")


def run(
    arguments: list[str], folder: Path, environment: Mapping[str, str], output: Path, seconds: float
) -> int:
    """Run Snakemake to its end; return its exit status.

    Args:
        arguments: Those of its command line.
        folder: The working folder.
        environment: All variables of its environment; none may be for Python itself.
        output: A file that is written with what it says on stdout and stderr.
        seconds: After which it is killed.

    Raises:
        subprocess.TimeoutExpired: If it was.
    """
    request = [arguments, str(folder), dict(environment), str(output)]
    return next(_servers())._run(request, seconds)


class _Server:
    """A process that forks for each run, and is there as long as this one.

    Args:
        seed: Of its hashes.
    """

    def __init__(self, seed: str) -> None:
        from helpers.workflow import environment

        self.process = subprocess.Popen(
            [sys.executable, "-m", "helpers.forked_runs"],
            env=environment({"PYTHONHASHSEED": seed}),
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.process.communicate)

    def _run(self, request: list[object], seconds: float) -> int:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        run = int(self.process.stdout.readline())
        late = not select.select([self.process.stdout], [], [], seconds)[0]
        if late:
            os.kill(run, signal.SIGKILL)
        status = int(self.process.stdout.readline())
        if late:
            raise subprocess.TimeoutExpired(["snakemake", *request[0]], seconds)
        return status


@cache
def _servers() -> itertools.cycle[_Server]:
    return itertools.cycle([_Server(seed) for seed in SEEDS])


def _serve() -> None:
    """Fork for each line of stdin; answer the fork's number, then its exit status."""
    for module in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    while line := sys.stdin.readline():
        if not (run := os.fork()):
            return _become(*json.loads(line))
        print(run, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]), flush=True)


def _become(arguments: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """Be `python -m snakemake` that was started in a folder."""
    import snakemake.cli
    from snakemake.workflow import Workflow

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    Workflow._rundir = sys.path[0] = folder
    sys.argv = [str(Path(snakemake.cli.__file__).with_name("__main__.py")), *arguments]
    with open(os.devnull) as nothing, open(output, "wb") as said:
        for file, number in ((nothing, 0), (said, 1), (said, 2)):
            os.dup2(file.fileno(), number)
    snakemake.cli.main()


if __name__ == "__main__":
    _serve()
