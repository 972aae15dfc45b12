"""fetch.py as the rules call it: killed, started twice, out of room; nothing comes twice."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_cases import (
    READER,
    add_model,
    big_file,
    environment,
    fetch_command,
    files_with,
    locked,
    run,
    size_of,
    wait_until,
)
from helpers.loopback_hub import LoopbackHub

NAME = "model.safetensors"


class Case:
    """A served file of 6 MB and a place for it."""

    def __init__(self, server: Any, tmp_path: Path) -> None:
        self.server, self.home, self.results = server, tmp_path / "home", tmp_path / "run"
        self.folder = add_model(server.store.root, "o/m", big_file(6))
        self.target = self.results / "models" / NAME
        self.commit, entry, _ = locked(server, "o/m", NAME)
        self.part = self.target.with_name(f"{NAME}.{entry.sha256[:16]}.part")
        self.content = entry.file.read_bytes()
        self.command = fetch_command(server, "o/m", NAME, self.target)
        self.env = environment(server, self.home)

    def start(self, log: Any = "log.txt", **more: Any) -> Any:
        self.results.mkdir(exist_ok=True)
        with open(self.results / log, "ab") as file:
            return subprocess.Popen(
                self.command, env=self.env, stdout=file, stderr=subprocess.STDOUT, **more
            )

    def start_and_hold(self, count: Any) -> Any:
        """Start a fetch that the server holds after so many bytes; return it then."""
        there = size_of(self.part)
        self.server.fault("/_cdn/", "pause", after=count)
        process = self.start()
        wait_until(lambda: size_of(self.part) == there + count, process)
        return process

    def finish(self) -> None:
        result = run(self.command, self.env)
        assert result.returncode == 0, result.stderr
        assert [path.name for path in self.target.parent.iterdir()] == [NAME]
        assert self.target.read_bytes() == self.content

    def ranges(self) -> list[Any]:
        return [request.range for request in self.server.requests("/_cdn/")]


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Any]:
    with LoopbackHub(tmp_path / "hub") as server:
        yield Case(server, tmp_path)


class TestKilled:
    def test_at_several_offsets_and_the_branch_moves_meanwhile(self, case: Any) -> None:
        """Every byte is sent once, although four processes died on the way."""
        offsets, position = [1, 100_000, 3_000_000, 3_191_570], 0
        for count in offsets:
            process = case.start_and_hold(count)
            process.kill()
            process.wait()
            position += count
            assert case.part.read_bytes() == case.content[:position]
            assert not case.target.exists()
        case.folder.rename(case.folder.with_name("m@old"))
        add_model(case.server.store.root, "o/m", big_file(1), seed=3)
        case.finish()
        assert case.ranges() == [
            *(None, "bytes=1-", "bytes=100001-", "bytes=3100001-"),
            f"bytes={position}-",
        ]
        last = case.server.requests("/_cdn/")[-1]
        assert last.sent == len(case.content) - position

    def test_by_a_cluster_that_asks_first(self, case: Any) -> None:
        process = case.start_and_hold(2_000_000)
        process.terminate()
        assert process.wait() == -signal.SIGTERM
        case.finish()
        assert case.ranges() == [None, "bytes=2000000-"]


class TestTwoAtOnce:
    def start_second(self, case: Any) -> Any:
        second = case.start("second.txt")
        log = case.results / "second.txt"
        wait_until(lambda: "is being written by" in log.read_text(), second)
        return second

    def test_the_second_waits_and_finds_the_file(self, case: Any) -> None:
        first = case.start_and_hold(1_000_000)
        second = self.start_second(case)
        case.server.release()
        assert (first.wait(), second.wait()) == (0, 0)
        assert case.target.read_bytes() == case.content
        assert case.ranges() == [None]
        assert "present, 6.29 MB" in (case.results / "second.txt").read_text()

    def test_the_second_takes_over_from_a_first_that_dies(self, case: Any) -> None:
        first = case.start_and_hold(1_000_000)
        second = self.start_second(case)
        first.kill()
        first.wait()
        assert second.wait() == 0
        assert case.target.read_bytes() == case.content
        assert case.ranges() == [None, "bytes=1000000-"]


class TestNoRoom:
    def test_a_limit_of_the_system(self, case: Any) -> None:
        """The kernel's own refusal, in place of a full disk, which a test cannot make."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, 2_500_000))

        process = case.start(preexec_fn=limit)
        assert process.wait() == 1
        text = (case.results / "log.txt").read_text()
        assert "files as large as this are not allowed here" in text
        assert "2.50 MB of 6.29 MB are kept" in text
        assert "Traceback" not in text
        case.finish()
        assert case.ranges() == [None, "bytes=2500000-"]


class TestCommandLine:
    def test_writes_a_record(self, case: Any) -> None:
        record = case.results / "record.json"
        case.command += ["--record", str(record)]
        case.finish()
        row = json.loads(record.read_text())
        assert (row["how"], row["downloaded"]) == ("downloaded", len(case.content))
        assert (row["repo"], row["commit"], row["name"]) == ("o/m", case.commit, NAME)

    def test_a_failure_is_one_message(self, case: Any) -> None:
        case.server.fault("/_cdn/", "corrupt", times=9)
        result = run(case.command, case.env)
        assert result.returncode == 1
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "is not what the lock names, twice" in errors[0]
        assert "Traceback" not in result.stderr


class TestToken:
    def hold_back(self, case: Any) -> None:
        settings = {"gated": True, "readers": [READER]}
        (case.folder / ".hub.json").write_text(json.dumps(settings))

    @pytest.mark.parametrize("place", ["environment", "login file"])
    @pytest.mark.parametrize("debug", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_is_in_no_file_and_no_command_line(self, case: Any, place: str, debug: bool) -> None:
        self.hold_back(case)
        if place == "environment":
            case.env["HF_TOKEN"] = READER
        else:
            case.home.mkdir()
            (case.home / "token").write_text(READER)
        if debug:  # the client logs all that it sends, redirects too
            case.env["HF_DEBUG"] = "1"
        case.command += ["--record", str(case.results / "record.json")]
        case.server.fault("/resolve/", "status", status=503, headers={"Retry-After": "0"})
        process = case.start_and_hold(1_000_000)
        with open(f"/proc/{process.pid}/cmdline", "rb") as file:
            assert READER.encode() not in file.read()
        case.server.release()
        assert process.wait() == 0
        assert ("curl" in (case.results / "log.txt").read_text()) == debug
        assert files_with(READER, case.results) == []
        assert debug or files_with("secret-of-the-redirect", case.results) == []
        assert not any(request.auth for request in case.server.requests("/_cdn/"))

    @pytest.mark.parametrize("token", [None, "hf_somebodyElsesTokenHere", "hf_with a\x07bell"])
    def test_is_in_no_message_of_a_refusal(self, case: Any, token: str | None) -> None:
        self.hold_back(case)
        if token:
            case.env["HF_TOKEN"] = token
        result = run(case.command, case.env)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert "error: " in result.stderr
        if token:
            assert token not in result.stderr
            assert token[3:] not in result.stderr
        else:
            assert f"Visit {case.server.url}/o/m, accept its terms" in result.stderr
