"""Machine code goes from a fork to the process it was forked from: whole, bounded, at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from shardmerge.engine import machine_code, native
from shardmerge.engine.machine_code import ObjectCode
from shardmerge.run import shared_code
from shardmerge.run.shared_code import SharedCode

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux only"),
    pytest.mark.skipif(not native.is_usable(), reason="no native code here"),
]


def text(number: int) -> str:
    """Return a function that does nothing, in a text of its own."""
    head = "define void @merge(ptr %a, ptr %b, i64 %c, ptr %d, ptr %e) {"
    return f"{head}\n  ret void\n}}\n; {number}\n"


def forked(work: Callable[[], Any]) -> int:
    """Do something in a fork, which ends as a fork of a shared process does; return its id."""
    process = os.fork()
    if not process:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return process


def ended(process: int) -> int:
    """Return how a fork ended."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> SharedCode:
    """A channel of a process that has no code yet."""
    monkeypatch.setattr(machine_code, "_CODE", machine_code._Code())
    return SharedCode()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[ObjectCode]:
    """What has been loaded."""
    found: list[ObjectCode] = []
    load = machine_code.take_over

    def noted(made: ObjectCode) -> bool:
        found.append(made)
        return load(made)

    monkeypatch.setattr(machine_code, "take_over", noted)
    return found


def test_later_forks_make_nothing(
    channel: SharedCode, taken: list[ObjectCode], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text(number) for number in range(3)]

    def first() -> None:
        channel.send_from_here()
        for function in machine_code.compiled_together(texts):
            function(None, None, 0, None, None)

    def second() -> None:
        monkeypatch.setattr(machine_code, "_object", None)
        first()

    assert ended(forked(second)) == 1  # it would have to make some
    channel.take()
    assert not taken
    assert ended(forked(first)) == 0
    channel.take()
    assert [len(made.names) for made in taken] == [3]
    assert ended(forked(second)) == 0
    channel.take()
    assert len(taken) == 1


def test_two_jobs_that_make_the_same_at_once(channel: SharedCode, taken: list[ObjectCode]) -> None:
    def work() -> None:
        channel.send_from_here()
        machine_code.compiled_together([text(0), text(1)])

    assert [*map(ended, [forked(work), forked(work)])] == [0, 0]
    room = channel._room
    channel.take()
    assert len(taken) == 2
    assert taken[0] == taken[1]  # the same bytes, whoever makes them
    assert room - channel._room == taken[0].room


def test_a_job_that_is_killed_while_it_sends(
    channel: SharedCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrives is whole, whenever that was."""
    packets = [ObjectCode((f"merge_{k}",), bytes([k]) * (30000 + k)) for k in range(200)]
    found: list[ObjectCode] = []
    monkeypatch.setattr(machine_code, "take_over", lambda made: found.append(made))

    def work() -> None:
        channel._there.setblocking(True)
        for made in packets:
            channel._send(made)
        time.sleep(600)

    for pause in (0.0, 0.001, 0.003, 0.01, 0.03):
        begin = len(found)
        process = forked(work)
        end = time.monotonic() + pause
        while time.monotonic() < end:
            channel.take()
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        channel.take()
        assert found[begin:] == packets[: len(found) - begin]
    assert len(found) > len(packets) // 10


def test_no_job_waits(channel: SharedCode) -> None:
    """Nobody takes anything, and what is too large for a packet is left out."""

    def work() -> None:
        channel.send_from_here()
        for size in (2 << 20, 900_000, *[20000] * 1000):
            channel._send(ObjectCode(("merge_x",), bytes(size)))
        machine_code.compiled(text(0))

    signal.alarm(60)  # it would wait for ever
    try:
        assert ended(forked(work)) == 0
    finally:
        signal.alarm(0)


def test_memory_is_bounded(
    channel: SharedCode, taken: list[ObjectCode], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    machine_code.tell_of_code(made.append)
    machine_code.compiled(text(0))
    monkeypatch.setattr(channel, "_room", 3 * made[0].room + 100)
    monkeypatch.setattr(machine_code, "_CODE", machine_code._Code())

    def work() -> None:
        channel.send_from_here()
        for number in range(5):
            machine_code.compiled(text(number))

    assert ended(forked(work)) == 0
    channel.take()
    assert len(taken) == 3
    assert 0 <= channel._room < made[0].room
    assert shared_code._ROOM == 64 << 20
