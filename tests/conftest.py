"""What tests of all workers share: builds that are made once, and only read or copied."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Threads that wait by turning round and round take the time of those that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from helpers.workflow import Once, Project

# The same examples on every machine, and no limit of time: a loaded one is slow.
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

# A run has many processes that load hundreds of modules each: half as long if they are compiled.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: more threads than these wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, as merge jobs do: of several each adds up a part."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Return what gives a folder by name, and makes it if no worker of the session has yet."""
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once"
    root.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def flagship(once: Once) -> Project:
    """The flagship's shards over tiny sources, merged by one plain run; not to be changed."""
    project = Project(once("flagship", lambda folder: Project.create(folder).build()))
    assert len(project.shards()) == 5
    return project
