"""What the tests of the Hub share: small repositories, an environment, the command lines."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from huggingface_hub import constants

from helpers.loopback_hub import LoopbackHub
from helpers.loopback_store import Entry
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.base.identities import LockedFile
from shardmerge.base.safetensors import write_header
from shardmerge.sources import hub
from shardmerge.sources.hub import client

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
READER = "hf_readerREADERreaderREADER"
WRITER = "hf_writerWRITERwriterWRITER"
#: What a test may wait for a process to get somewhere.
PATIENCE = 600.0

WEIGHTS = "model.safetensors"
Tensors = Sequence[tuple[str, str, tuple[int, ...]]]

#: A weight file of 300 x 1024 x 2 bytes and a header.
ONE_FILE: Mapping[str, Tensors] = {WEIGHTS: [("lm_head.weight", "F16", (300, 1024))]}


def write_weights(path: Path, tensors: Tensors, seed: int = 0) -> None:
    """Write a safetensors file of random bytes."""
    header = write_header(tensors, {"format": "pt"})
    size = sum(math.prod(shape) * DTYPES[dtype].size for _, dtype, shape in tensors)
    path.write_bytes(header + random.Random(seed).randbytes(size))


def add_model(
    root: Path,
    repo: str,
    files: Mapping[str, Tensors] | None = None,
    *,
    index: bool | None = None,
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Path:
    """Write a model into the loopback Hub's folder and return its folder.

    Args:
        root: The Hub's folder.
        repo: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.
        files: Tensors by weight file.
        index: Whether there is an index; by default if there are several files.
        settings: ``.hub.json``.
        seed: Of the weights.
    """
    files = files or {"model.safetensors": [("lm_head.weight", "F16", (64, 32))]}
    folder = root / repo
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 32}))
    (folder / "tokenizer.json").write_text(json.dumps({"seed": seed}))
    (folder / "README.md").write_text("# A model\n")
    for number, (name, tensors) in enumerate(files.items()):
        write_weights(folder / name, tensors, seed + number)
    if len(files) > 1 if index is None else index:
        weight_map = {tensor: name for name, tensors in files.items() for tensor, *_ in tensors}
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
    if settings:
        (folder / ".hub.json").write_text(json.dumps(settings))
    return folder


def big_file(megabytes: int) -> dict[str, Tensors]:
    """Return the tensors of one weight file of about that size."""
    return {"model.safetensors": [("lm_head.weight", "F16", (megabytes * 512, 1024))]}


def locked(hub: LoopbackHub, repo: str, name: str) -> tuple[str, Entry, LockedFile]:
    """Return the commit that a repository is at, a file of it, and how a lock names that."""
    folder = hub.store.folders(repo)["main"]
    entry = next(e for e in hub.store.entries(folder) if e.path == name)
    if entry.lfs:
        file = LockedFile(entry.size, sha256=entry.sha256)
    else:
        file = LockedFile(entry.size, git_oid=entry.git_oid)
    return hub.store.commit_of(repo, folder), entry, file


def environment(hub: LoopbackHub, home: Path, token: str | None = None) -> dict[str, str]:
    """Return the environment of a command that talks to the loopback Hub and to nothing else."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    kept |= {"no_proxy": "127.0.0.1,localhost"}
    return kept | ({"HF_TOKEN": token} if token else {})


def fetch_command(
    hub: LoopbackHub, repo: str, name: str, output: Path, *more: str, commit: str | None = None
) -> list[str]:
    """Return the command that fetches a file of a repository as it is now."""
    at, entry, file = locked(hub, repo, name)
    content = ["--sha256", file.sha256] if file.sha256 else ["--git-oid", file.git_oid]
    return [
        *(sys.executable, str(SCRIPTS / "fetch.py"), "--repo", repo, "--commit", commit or at),
        *("--name", name, "--size", str(entry.size), *content, "--output", str(output), *more),
    ]


def run(command: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Wait until something is so, while a process runs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        assert process is None or process.poll() is None, "the process has ended"
        time.sleep(0.005)


def size_of(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def files_with(text: str, *folders: Path) -> list[Path]:
    """Return the files anywhere in folders that hold a text."""
    wanted = text.encode()
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and wanted in path.read_bytes()
    ]


class FetchCase:
    """A served file of 615 kB, a place for it, and what to look at after a fetch."""

    def __init__(self, server: LoopbackHub, tmp_path: Path, waits: list[float]) -> None:
        self.server, self.waits, self.lines = server, waits, []
        self.folder = add_model(server.store.root, "o/m", ONE_FILE)
        self.target = tmp_path / "models" / "o--m" / WEIGHTS
        self.commit, self.entry, self.locked = locked(server, "o/m", WEIGHTS)
        self.part = self.target.with_name(f"{WEIGHTS}.{self.entry.sha256[:16]}.part")
        self.content = self.entry.file.read_bytes()

    def fetch(self, **more: object) -> hub.FetchRecord:
        """Fetch the file."""
        more = {"progress": self.lines.append} | more
        return hub.fetch("o/m", self.commit, WEIGHTS, self.locked, self.target, **more)

    def told(self, **more: object) -> str:
        """Return the message of a fetch that fails."""
        with pytest.raises(UserError) as caught:
            self.fetch(**more)
        return str(caught.value)

    def ranges(self) -> list[str | None]:
        """Return the Range of every request to storage."""
        return [request.range for request in self.server.requests("/_cdn/")]

    def sent(self) -> int:
        """Return the bytes that storage has sent."""
        return sum(request.sent for request in self.server.requests("/_cdn/"))

    def arrived(self) -> bool:
        """Whether the file is there, whole, and nothing beside it."""
        folder = sorted(path.name for path in self.target.parent.iterdir())
        return folder == [WEIGHTS] and self.target.read_bytes() == self.content

    def keep(self, count: int) -> None:
        """Make the part file that an earlier run left."""
        self.part.parent.mkdir(parents=True)
        self.part.write_bytes(self.content[:count])


@contextlib.contextmanager
def fetch_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FetchCase]:
    """Give a served file, no token, an empty cache, and waits that take no time."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    waits: list[float] = []
    monkeypatch.setattr(client, "pause", waits.append)
    with LoopbackHub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield FetchCase(server, tmp_path, waits)
