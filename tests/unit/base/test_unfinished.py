"""Work that is kept over kills: taken over by the same job alone, whole, and not too often."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base import unfinished
from shardmerge.base.errors import UserError
from shardmerge.base.unfinished import Keeping, Unfinished

#: Kept after each step.
ALWAYS = Keeping("job", least=0.0, share=1.0)
_STEPS = 10


class Stop(BaseException):
    """Ends a run as a kill does."""


def run(
    output: Path,
    keeping: Keeping = ALWAYS,
    *,
    stop: int = -1,
    how: BaseException | type[BaseException] = Stop,
    confirm: Callable[[], None] = lambda: None,
) -> list[int]:
    """Write ten pieces, every second one of which is made of two steps; return the steps done."""
    steps = []
    with Unfinished(output, keeping, confirm) as work:
        begun = work.done.get("steps", 0)
        held = bytearray(*work.arrays)
        for step in range(begun, _STEPS):
            if step == stop:
                raise how
            steps.append(step)
            held += bytes([step]) * 1000
            if step % 2:
                work.write(held)
                held = bytearray()
            work.keep({"steps": step + 1}, [held], len(held))
    return steps


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "made" / "x.safetensors"


@pytest.fixture
def wanted(tmp_path: Path) -> bytes:
    run(tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


def left(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir())


@pytest.mark.parametrize("stop", [1, 4, 5, 9])
def test_the_rest_alone_is_done(output: Path, wanted: bytes, stop: int) -> None:
    with pytest.raises(Stop):
        run(output, stop=stop)
    assert left(output) == ["x.safetensors.part", "x.safetensors.state.part"]
    assert run(output) == list(range(stop, _STEPS))
    assert output.read_bytes() == wanted
    assert left(output) == ["x.safetensors"]


def test_killed_again_and_again(output: Path, wanted: bytes) -> None:
    for stop in range(1, _STEPS):
        with pytest.raises(Stop):
            run(output, stop=stop)
    assert run(output) == [_STEPS - 1]
    assert output.read_bytes() == wanted


def test_what_was_done_after_it_was_kept_last_is_done_again(output: Path, wanted: bytes) -> None:
    ticks = iter([0.0, *[50.0] * 12, *[1e9] * 100])  # twice a step that keeps nothing
    keeping = Keeping("job", least=40.0, clock=lambda: next(ticks))
    with pytest.raises(Stop):
        run(output, keeping, stop=7)
    again = run(output)
    assert again == list(range(again[0], _STEPS)) and 0 < again[0] < 7
    assert output.read_bytes() == wanted


def test_nothing_stays_where_nothing_was_kept(output: Path) -> None:
    with pytest.raises(Stop):
        run(output, Keeping("job"), stop=7)
    assert left(output) == []


def test_another_job_begins_anew(output: Path, wanted: bytes) -> None:
    with pytest.raises(Stop):
        run(output, stop=7)
    assert run(output, ALWAYS.also(threads=2)) == list(range(_STEPS))
    assert output.read_bytes() == wanted


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _long(path: Path) -> None:
    path.write_bytes(b'{"size": 9}\n' + (1 << 62).to_bytes(8, "little") + bytes(40))


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _long, Path.unlink, _link])
@pytest.mark.parametrize("name", ["x.safetensors.part", "x.safetensors.state.part"])
def test_what_is_damaged_is_not_taken_over(
    output: Path, wanted: bytes, damage: Callable[[Path], object], name: str
) -> None:
    with pytest.raises(Stop):
        run(output, stop=7)
    damage(output.with_name(name))
    if damage is _link and name == "x.safetensors.part":
        with pytest.raises(OSError, match="symbolic links") as caught:
            run(output)
        assert caught.value.errno == errno.ELOOP
        return
    assert run(output) == list(range(_STEPS))
    assert output.read_bytes() == wanted


def test_nothing_stays_of_files_that_changed(output: Path) -> None:
    def changed() -> None:
        raise UserError("changed while it was read")

    with pytest.raises(Stop):
        run(output, stop=7)
    with pytest.raises(UserError, match="changed"):
        run(output, confirm=changed)
    assert left(output) == []


@pytest.mark.parametrize("how", [MemoryError, UserError("the card is full"), KeyboardInterrupt])
def test_another_error_leaves_what_was_kept(output: Path, how: Any) -> None:
    with pytest.raises(type(how) if isinstance(how, Exception) else how):
        run(output, stop=7, how=how)
    assert run(output) == [7, 8, 9]


def test_a_full_disk_keeps_nothing_and_ends_nothing(
    output: Path, wanted: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    told: list[str] = []
    monkeypatch.setattr(unfinished, "atomic_path", full)
    keeping = Keeping("job", least=0.0, share=1.0, say=told.append)
    assert run(output, keeping) == list(range(_STEPS))
    assert output.read_bytes() == wanted
    assert "cannot be kept" in told[0] and "No space left" in told[0]


class Clock:
    """Steps take a second, keeping takes some."""

    def __init__(self) -> None:
        self.now = self.keeping = 0.0

    def arrays(self, seconds: float) -> Iterator[bytes]:
        self.now += seconds
        self.keeping += seconds
        yield b"x"


@pytest.mark.parametrize("seconds", [0.01, 1.0, 20.0])
def test_it_takes_a_small_share_of_the_time(
    output: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even the first time, when nobody knows how slow the disk is."""
    clock, kept = Clock(), []
    keeping = Keeping("job", clock=lambda: clock.now)
    monkeypatch.setattr(unfinished, "_SPEED", 1000)
    size = int(seconds * 1000)
    with Unfinished(output, keeping) as work:
        for step in range(4_000):
            clock.now += 1
            if work.keep({"steps": step}, clock.arrays(seconds), size):
                kept.append(clock.now)
                assert clock.keeping <= 0.0201 * clock.now
    gaps = [b - a for a, b in pairwise(kept)]
    assert kept and max(gaps) <= max(31, 50 * seconds) + 1
    assert min(gaps) >= 30
