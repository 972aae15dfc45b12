"""The way back: publish.py, and what publish.py sent fetched again; the loopback Hub by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.built_model import VERIFIED
from helpers.hub_cases import (
    SCRIPTS,
    WRITER,
    add_model,
    environment,
    fetch_command,
    files_with,
    run,
    wait_until,
    write_weights,
)
from helpers.loopback_hub import LoopbackHub
from helpers.loopback_store import Store
from helpers.loopback_uploads import PART_BYTES
from shardmerge.base.files import sha256_of

SHARDS = {
    f"model-0000{n}-of-00003.safetensors": [(f"layer.{n}", "F16", (400, 1024))] for n in (1, 2, 3)
}


class Case:
    """A verified model and an empty Hub."""

    def __init__(self, server: Any, tmp_path: Path) -> None:
        self.server, self.results = server, tmp_path / "results"
        self.model = add_model(self.results, "NAME/model", SHARDS)
        self.verify = self.results / "NAME" / "verify.json"
        self.verify.write_text(json.dumps(VERIFIED))
        self.receipt = self.results / "NAME" / "published.json"
        self.there = server.store.root / "me" / "merged"
        self.env = environment(server, tmp_path / "home", WRITER)
        self.command = [
            *(sys.executable, str(SCRIPTS / "publish.py"), "--folder", str(self.model)),
            *("--verify", str(self.verify), "--repo", "me/merged", "--output", str(self.receipt)),
        ]

    def puts(self) -> Any:
        return self.server.requests("/_lfs/", "PUT")


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as server:
        server.writers.add(WRITER)
        yield Case(server, tmp_path)


class TestPublish:
    def test_killed_goes_on_with_what_is_missing(self, case: Any) -> None:
        shas = {e.path: e.sha256 for e in Store(case.results).entries(case.model)}
        slow = shas["model-00003-of-00003.safetensors"]
        case.server.fault(f"/_lfs/{slow}", "pause", method="PUT", after=300_000)
        with open(case.results / "log.txt", "wb") as log:
            process = subprocess.Popen(case.command, env=case.env, stdout=log, stderr=log)
        wait_until(
            lambda: (
                len([r for r in case.puts() if r.status == 200]) == 2
                and any(r.sent >= 300_000 and not r.status for r in case.puts())
            ),
            process,
        )
        with open(f"/proc/{process.pid}/cmdline", "rb") as file:
            assert WRITER.encode() not in file.read()
        process.kill()
        process.wait()
        assert case.server.commits == []
        assert not case.receipt.exists()
        case.server.log.clear()

        result = run(case.command, case.env)
        assert result.returncode == 0, result.stderr
        assert [r.path for r in case.puts()] == [f"/_lfs/{slow}"]
        for path in case.model.iterdir():
            assert (case.there / path.name).read_bytes() == path.read_bytes()
        receipt = json.loads(case.receipt.read_text())
        assert receipt["private"] is True
        assert receipt["url"] == result.stdout.strip() and receipt["commit"] in receipt["url"]
        assert receipt["files"] == {
            p.name: {"size": p.stat().st_size, "sha256": sha256_of(p)} for p in case.model.iterdir()
        }
        (case.results / "second.txt").write_text(result.stdout + result.stderr)
        assert files_with(WRITER, case.results) == []

    def test_killed_within_a_file_sends_that_file_alone_again(self, case: Any) -> None:
        """A file of several parts: LFS knows whole files only, so its parts go up again."""
        name, other = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
        write_weights(case.model / name, [("layer.1", "F16", (2 * PART_BYTES // 1024, 1024))])
        shas = {e.path: e.sha256 for e in Store(case.results).entries(case.model)}
        case.server.fault(f"/_lfs/{shas[name]}/2", "pause", method="PUT", after=300_000)
        with open(case.results / "log.txt", "wb") as log:
            process = subprocess.Popen(case.command, env=case.env, stdout=log, stderr=log)
        wait_until(
            lambda: (
                f"{shas[other]}" in "".join(r.path for r in case.puts() if r.status == 200)
                and any(r.path.endswith("/2") and r.sent >= 300_000 for r in case.puts())
                and len([r for r in case.puts() if r.status == 200]) >= 3
            ),
            process,
        )
        process.kill()
        process.wait()
        case.server.log.clear()
        assert run(case.command, case.env).returncode == 0
        assert {r.path.split("/")[2] for r in case.puts()} == {shas[name]}
        assert sum(r.sent for r in case.puts()) == (case.model / name).stat().st_size
        assert (case.there / name).read_bytes() == (case.model / name).read_bytes()

    def test_refuses_what_is_not_verified(self, case: Any) -> None:
        case.verify.write_text('{"passed": false, "problems": ["a NaN"]}')
        result = run(case.command, case.env)
        assert result.returncode == 1
        assert "does not say that the model passed verification" in result.stderr
        assert case.server.log == []

    def test_dry_run(self, case: Any) -> None:
        result = run([*case.command, "--dry-run"], case.env)
        assert result.returncode == 0, result.stderr
        assert "6 files" not in result.stderr
        assert "7 files, 2.46 MB, to a new private repository" in result.stderr
        assert not case.receipt.exists()
        assert {request.method for request in case.server.log} == {"GET"}

    @pytest.mark.slow
    def test_what_went_up_comes_back_the_same(self, case: Any, tmp_path: Path) -> None:
        assert run([*case.command, "--public"], case.env).returncode == 0
        name = "model-00002-of-00003.safetensors"
        target = tmp_path / "back" / name
        result = run(fetch_command(case.server, "me/merged", name, target), case.env)
        assert result.returncode == 0, result.stderr
        assert target.read_bytes() == (case.model / name).read_bytes()


class TestLoopbackHub:
    @pytest.mark.slow
    def test_by_hand(self, tmp_path: Path) -> None:
        add_model(tmp_path, "o/m")
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.loopback_hub", str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        try:
            url = process.stdout.readline().strip()
            code = (
                "import sys; sys.path.insert(0, sys.argv[1]); "
                "from shardmerge.sources.locking import lock_hub; "
                "print(len(lock_hub('o/m', None).tensors))"
            )
            env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home")}
            assert run([sys.executable, "-c", code, str(SCRIPTS)], env).stdout.strip() == "1"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
