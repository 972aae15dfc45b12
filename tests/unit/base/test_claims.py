"""Claims on outputs: one writer, on one machine or several; the dead make way for the living."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardmerge.base import claims, owner
from shardmerge.base.claims import HeldError, Patience, claimed
from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path, write_text
from shardmerge.base.printable import is_printable

QUICK = Patience(beat=0.02, late=0.2, stale=0.4, poll=0.01)
SCRIPTS = Path(claims.__file__).parents[2]

#: What no owner wrote, or not to its end.
UNREADABLE = (
    b"",
    b"\xff\xfe\x00",
    b"{",
    b"[" * 100_000,
    b'{"token": "../../x", "user": "u", "host": "h", "since": "s"}',
    b'{"token": "t", "user": "\\u001b[2J", "host": "h", "since": "s"}',
    b'{"token": "t", "user": "u", "host": "h", "since": "s", "pid": "1"}',
    b'{"token": "t", "user": "u", "host": "h", "since": "s", "job": "--help"}',
    b'{"token": ["t"], "user": "u", "host": "h", "since": "s"}',
    b"3",
)

#: Holds the claim on argv[1] and says so; waits for its stdin to close.
HOLDER = (
    "import sys\n"
    "from shardmerge.base.claims import claimed\n"
    "with claimed(sys.argv[1], print):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


class Other:
    """Another process that holds a claim."""

    def __init__(self, target: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(target)],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "held\n"

    def end(self) -> None:
        self.process.communicate(timeout=300)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=300)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out.safetensors"


@pytest.fixture
def start(target: Path) -> Iterator[Callable[[], Other]]:
    started = []

    def begin() -> Other:
        started.append(Other(target))
        return started[-1]

    yield begin
    for other in started:
        other.kill()


def path_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.claim")


def elsewhere(target: Path, age: float = 0, **changes: object) -> owner.Owner:
    """Write the claim of a process on another machine; return its owner."""
    target.parent.mkdir(parents=True, exist_ok=True)
    far = {"host": "far", "boot": "another", **changes}
    there = dataclasses.replace(owner.this_process("t0ken"), **far)
    path = path_of(target)
    path.write_text(json.dumps(there.to_json()), encoding="utf-8")
    os.utime(path, (time.time() - age,) * 2)
    return there


class Clock:
    """Time as claims see it: it goes on where they sleep, and an owner touches its claim then.

    Args:
        target: The claimed output.
        monkeypatch: Puts this clock, and a file system's that shows the same time, in place.
        touches: How often the owner does so before it dies.
        after: Seconds in which it does not at first.
    """

    def __init__(
        self, target: Path, monkeypatch: pytest.MonkeyPatch, touches: int, after: float = 0
    ) -> None:
        self.path, self.touches, self.now = path_of(target), touches, time.time()
        self._from = self.now + after
        mine = types.SimpleNamespace(
            monotonic=lambda: self.now, sleep=self.sleep, time=lambda: self.now
        )
        monkeypatch.setattr(claims, "time", mine)
        monkeypatch.setattr(claims, "age", lambda path, seen: self.now - seen.touched)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.touches and self.now > self._from:
            self.touches -= 1
            os.utime(self.path, (self.now, self.now))


class TestOneMachine:
    def test_a_claim_is_there_while_it_is_held(self, target: Path) -> None:
        with claimed(target) as claim:
            assert not claim.waited
            assert [p.name for p in target.parent.iterdir()] == [path_of(target).name]
            told = json.loads(path_of(target).read_text(encoding="utf-8"))
            assert told["pid"] == os.getpid()
            assert told["host"] == socket.gethostname()
        assert list(target.parent.iterdir()) == []

    def test_it_goes_with_an_error_too(self, target: Path) -> None:
        with pytest.raises(ZeroDivisionError), claimed(target):
            raise ZeroDivisionError
        assert list(target.parent.iterdir()) == []

    def test_the_same_process_may_claim_again(self, target: Path) -> None:
        with claimed(target) as first, claimed(target.parent / "." / target.name) as second:
            assert first is second
        assert not path_of(target).exists()

    def test_a_second_waits_and_is_told_for_whom(
        self, target: Path, start: Callable[[], Other]
    ) -> None:
        other, lines = start(), []

        def say(line: str) -> None:
            lines.append(line)
            other.end()

        with claimed(target, say, QUICK) as claim:
            assert claim.waited
        (line,) = lines
        assert line.startswith(f"waiting: {target.name} is being written by ")
        assert f"on {socket.gethostname()} (process {other.process.pid}) since 20" in line

    def test_or_is_told_at_once(self, target: Path, start: Callable[[], Other]) -> None:
        other = start()
        with pytest.raises(HeldError) as raised, claimed(target, wait=False):
            pass
        assert raised.value.owner.pid == other.process.pid
        assert claims.holder(target) == raised.value.owner

    def test_a_killed_owner_makes_way_at_once(
        self, target: Path, start: Callable[[], Other]
    ) -> None:
        start().kill()
        assert path_of(target).exists()
        assert claims.holder(target) is None
        with claimed(target, wait=False) as claim:
            claim.confirm()
        assert list(target.parent.iterdir()) == []

    def test_a_stopped_owner_is_waited_for(self, target: Path, start: Callable[[], Other]) -> None:
        """It shows no sign of life, but it is there and may go on."""
        other = start()
        other.process.send_signal(signal.SIGSTOP)
        old = time.time() - 10 * QUICK.stale
        os.utime(path_of(target), (old, old))
        with pytest.raises(HeldError), claimed(target, patience=QUICK, wait=False):
            pass
        other.process.send_signal(signal.SIGCONT)

    def test_a_number_that_another_process_has_now_is_no_owner(self, target: Path) -> None:
        elsewhere(target, boot=owner._boot(), started="1")
        assert claims.holder(target) is None

    def test_of_many_one_at_a_time(self, target: Path, start: Callable[[], Other]) -> None:
        """Processes take a dead owner's claim over and add to a file, none while another does."""
        start().kill()
        code = (
            "import sys, time, pathlib\n"
            "from shardmerge.base.claims import Patience, claimed\n"
            "target = pathlib.Path(sys.argv[1])\n"
            "for _ in range(20):\n"
            "    with claimed(target, patience=Patience(poll=0.001)):\n"
            "        text = target.read_text() if target.exists() else ''\n"
            "        time.sleep(0.0005)\n"
            "        target.write_text(text + 'x')\n"
        )
        many = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(target)],
                env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            )
            for _ in range(4)
        ]
        assert [process.wait(timeout=300) for process in many] == [0] * 4
        assert target.read_text() == "x" * 80
        assert [p.name for p in target.parent.iterdir()] == [target.name]


class TestOtherMachines:
    def test_signs_of_life_keep_a_claim(
        self, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For as long as the owner touches it, by clocks that only its touches move."""
        elsewhere(target)
        clock = Clock(target, monkeypatch, touches=300)
        said: list[str] = []
        with claimed(target, said.append, QUICK):
            assert clock.touches == 0
        assert "on far (process" in said[0]

    def test_old_silence_counts_only_once_it_was_watched(self, target: Path) -> None:
        """After a file system hung, every claim looks old for a moment."""
        elsewhere(target, age=10 * QUICK.stale)
        began = time.monotonic()
        with claimed(target, patience=QUICK):
            assert time.monotonic() - began > QUICK.late

    @pytest.fixture
    def squeue(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        folder = tmp_path / "bin"
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        owner._asked.cache_clear()

        def answer(script: str) -> None:
            (folder / "squeue").write_text(f"#!/bin/sh\n{script}\n")
            (folder / "squeue").chmod(0o755)

        return answer

    PATIENT = Patience(beat=1, late=5, stale=1e9, poll=0.01)

    @pytest.mark.parametrize(
        ("says", "alive"),
        [
            ("echo RUNNING", True),
            ("echo COMPLETING", True),
            ("echo PENDING", False),
            ("echo NODE_FAIL", False),
            ("true", False),
            ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
            ("echo 'Unable to contact slurm controller' >&2; exit 1", True),
        ],
    )
    def test_slurm_is_asked_about_a_silent_owner(
        self, target: Path, squeue: Callable[[str], None], says: str, alive: bool
    ) -> None:
        squeue(says)
        elsewhere(target, age=20, cluster="big", job="77")
        assert (claims.holder(target, self.PATIENT) is not None) == alive

    def test_slurm_is_not_asked_about_others(
        self, target: Path, squeue: Callable[[str], None]
    ) -> None:
        squeue("true")
        elsewhere(target, age=20, cluster="another", job="77")
        assert claims.holder(target, self.PATIENT)
        elsewhere(target, age=1, cluster="big", job="77")
        assert claims.holder(target, self.PATIENT)

    def test_a_requeued_job_knows_its_former_self(
        self, target: Path, squeue: Callable[[str], None]
    ) -> None:
        squeue("echo RUNNING")
        elsewhere(target, age=20, cluster="big", job="1")
        assert claims.holder(target, self.PATIENT) is None

    def test_who_lost_its_claim_writes_nothing(self, target: Path) -> None:
        """A machine slept too long: the other took over, and its file stands."""
        told = pytest.raises(UserError, match=r"was taken over by .* on far")
        with told, claimed(target), atomic_path(target) as part:
            part.write_text("late")
            path_of(target).unlink()
            elsewhere(target)
            target.write_text("theirs")
        assert target.read_text() == "theirs"
        assert path_of(target).exists()
        assert not list(target.parent.glob("*.part"))


class TestFileSystems:
    def test_without_hard_links(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
        with claimed(target) as claim:
            claim.confirm()
            assert claims.holder(target).pid == os.getpid()
        assert list(target.parent.iterdir()) == []

    def test_an_answer_that_was_lost(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """NFS repeats a request whose answer is lost: the link is made, and said to exist."""
        real = os.link

        def twice(source: Path, link: Path) -> None:
            real(source, link)
            real(source, link)

        monkeypatch.setattr(os, "link", twice)
        with claimed(target, wait=False) as claim:
            claim.confirm()

    def test_a_claim_half_written(self, target: Path) -> None:
        target.parent.mkdir()
        path_of(target).write_text('{"token": ')
        assert "on an unknown machine" in str(claims.holder(target))
        os.utime(path_of(target), (1, 1))
        assert claims.holder(target, QUICK) is None

    @pytest.mark.parametrize("text", UNREADABLE)
    def test_a_claim_that_cannot_be_read(self, target: Path, text: bytes) -> None:
        """Its owner counts as alive for a short while, then the next process takes it over."""
        target.parent.mkdir()
        path_of(target).write_bytes(text)
        said: list[str] = []
        assert "cannot be read" in str(claims.holder(target))
        with pytest.raises(HeldError, match="cannot be read"), claimed(target, wait=False):
            pass
        begin = time.monotonic()
        with claimed(target, said.append, QUICK) as claim:
            claim.confirm()
        assert time.monotonic() - begin < 60
        assert "cannot be read" in said[0]
        assert list(target.parent.iterdir()) == []

    @pytest.mark.parametrize("text", UNREADABLE)
    def test_an_old_one_is_told_of_by_nobody(self, target: Path, text: bytes) -> None:
        target.parent.mkdir()
        path_of(target).write_bytes(text)
        os.utime(path_of(target), (time.time() - 61,) * 2)
        assert claims.holder(target) is None

    def test_an_owner_who_touches_one_lives(
        self, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where others may not read its claim, or where the file system damaged it."""
        target.parent.mkdir()
        path_of(target).write_bytes(b"")
        clock = Clock(target, monkeypatch, touches=300)
        while clock.touches:
            clock.sleep(QUICK.beat)
            assert claims.holder(target, QUICK) is not None
            with pytest.raises(HeldError), claimed(target, patience=QUICK, wait=False):
                pass
        for _ in range(round(QUICK.late / QUICK.beat) + 1):
            clock.sleep(QUICK.beat)
        assert claims.holder(target, QUICK) is None

    @pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
    def test_no_plain_file(self, target: Path, kind: str) -> None:
        target.parent.mkdir()
        path = path_of(target)
        if kind == "link":
            path.symlink_to("nowhere")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
        assert "cannot be read" in str(claims.holder(target))
        if kind == "folder":
            with pytest.raises(UserError, match="cannot be written"), claimed(target, None, QUICK):
                pass
        else:
            with claimed(target, None, QUICK) as claim:
                claim.confirm()

    def test_damage_at_random(self, target: Path) -> None:
        """Whatever a claim holds, its owner can be told in one line."""
        elsewhere(target)
        whole = path_of(target).read_bytes()
        rng = random.Random(1)
        for _ in range(300):
            at, length = rng.randrange(len(whole)), rng.choice((0, 1, 1, 5, 50))
            new = rng.choice(
                (b"", b"\xff", b"\x1b[2J", b"\\u202e", b"9" * 9, b"../", b"null", b"{")
            )
            path_of(target).write_bytes(whole[:at] + new + whole[at + length :])
            told = claims.holder(target)
            assert told is not None
            assert is_printable(str(told))
            assert "/" not in told.token

    def test_odd_names_of_this_process(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOGNAME", "\x1b[2J" * 200)
        monkeypatch.setenv("SLURM_JOB_ID", "--help")
        with claimed(target) as claim:
            claim.confirm()

    def test_a_silent_owner_elsewhere_makes_way(self, target: Path) -> None:
        """Who does not wait for others still watches one who may be dead, and takes over."""
        elsewhere(target, age=10)
        said: list[str] = []
        with claimed(target, said.append, QUICK, wait=False) as claim:
            claim.confirm()
        assert "no sign of life" in said[0]

    def test_a_silent_owner_who_stirs_does_not(
        self, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere(target, age=10)
        clock = Clock(target, monkeypatch, touches=1, after=QUICK.late / 2)
        with pytest.raises(HeldError), claimed(target, patience=QUICK, wait=False):
            pass
        assert clock.touches == 0

    @pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_is_not_ours(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o555)
        with pytest.raises(UserError, match="cannot be written"), claimed(tmp_path / "x"):
            pass

    def test_a_file_where_the_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot be written"), claimed(tmp_path / "file" / "x"):
            pass


class TestParts:
    def test_unfinished_files_are_nobodys_once_claimed(self, target: Path) -> None:
        target.parent.mkdir()
        stale = target.parent / f".{target.name}.1.part"
        other = target.parent / ".other.1.part"
        stale.touch()
        other.touch()
        with claimed(target):
            assert not stale.exists()
            assert other.exists()

    def test_without_a_claim_only_old_ones_go(self, tmp_path: Path) -> None:
        young, old = tmp_path / ".a.txt.1.part", tmp_path / ".a.txt.2.part"
        young.touch()
        old.touch()
        os.utime(old, (1, 1))
        write_text(tmp_path / "a.txt", "text")
        assert young.exists()
        assert not old.exists()


class TestCommandLines:
    CODE = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from shardmerge.run.cli import claim, run\n"
        "from shardmerge.base.files import atomic_path\n"
        "def main():\n"
        "    claim(sys.argv[1])\n"
        "    with atomic_path(sys.argv[1]) as part:\n"
        "        part.touch()\n"
        "        print('writing', flush=True)\n"
        "        for _ in range(600):  # a signal just before a sleep waits for its end\n"
        "            time.sleep(0.1)\n"
        "run(main)\n"
    )

    def test_sigterm_leaves_neither_claim_nor_part(self, target: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(target)],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "writing\n"
        assert len(list(target.parent.iterdir())) == 2
        process.terminate()
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGTERM
        assert list(target.parent.iterdir()) == []
