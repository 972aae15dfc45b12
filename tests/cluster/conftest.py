"""One loopback cluster for all tests of this folder, given back as it was after each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import loopback
import pytest
from loopback import Cluster


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    """The cluster; the test is skipped where SLURM is not installed."""
    if reason := loopback.missing():
        pytest.skip(f"no loopback SLURM: {reason}")
    # Not below pytest's own folder: the path of a socket has a limit of about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """The cluster without jobs, all nodes up."""
    yield running
    running.reset()
