"""What tensors need before their elements: made once, in order, also ahead of who asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from helpers.engine_cases import SMALL, models_of_method, tuned
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.engine import ShardRecord
from shardmerge.engine.ahead import Ahead, Prepared
from shardmerge.engine.native_lane import NativeLane
from shardmerge.engine.pipeline import Stopped

#: Indices of tensors that need something, and in how many windows each lies.
PARTS = {1: 1, 2: 2, 4: 1, 5: 3}
#: Seconds after which a test gives up.
PATIENCE = 30


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


class TestTurns:
    def test_are_in_order_whoever_asks_first(self) -> None:
        ahead, order = Ahead(dict.fromkeys(PARTS, 1), 1), []

        def prepare(tensor: int, place: int) -> Prepared:
            assert place == 0
            order.append(tensor)
            return Prepared()

        def use(tensor: int) -> None:
            ahead.take(tensor, prepare)
            ahead.release(tensor)

        threads = [started(partial(use, one)) for one in (5, 4, 2, 1)]
        for thread in threads:
            thread.join(PATIENCE)
        assert order == sorted(PARTS)

    def test_what_is_made_is_made_once_and_kept_to_the_last_window(self) -> None:
        ahead, made = Ahead(PARTS, 1), []

        def prepare(tensor: int, place: int) -> Prepared:
            made.append(tensor)
            return Prepared()

        for tensor, parts in PARTS.items():
            found = {id(ahead.take(tensor, prepare)) for _ in range(parts)}
            assert len(found) == 1
            for _ in range(parts):
                ahead.release(tensor)
        assert made == sorted(PARTS)
        assert 1 in ahead
        assert 3 not in ahead

    def test_as_many_are_there_as_places(self) -> None:
        ahead, made = Ahead(PARTS, 2), []
        twice = threading.Semaphore(0)

        def prepare(tensor: int, place: int) -> Prepared:
            made.append((tensor, place))
            twice.release()
            return Prepared()

        thread = started(lambda: ahead.run(prepare))
        for _ in range(2):
            assert twice.acquire(timeout=PATIENCE)
        thread.join(0.05)
        assert [tensor for tensor, _ in made] == [1, 2]
        first, second = (place for _, place in made)
        assert {first, second} == {0, 1}
        ahead.release(1)
        assert twice.acquire(timeout=PATIENCE)
        assert made[2:] == [(4, first)]
        for tensor, parts in PARTS.items():
            for _ in range(parts if tensor > 1 else 0):
                ahead.take(tensor, prepare)
                ahead.release(tensor)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert len(made) == len(PARTS)

    def test_a_failure_ahead_is_raised_where_it_is_taken(self) -> None:
        ahead = Ahead(PARTS, 2)

        def prepare(tensor: int, place: int) -> Prepared:
            if tensor == 2:
                raise ValueError("two")
            return Prepared()

        thread = started(lambda: ahead.run(prepare))
        ahead.take(1, prepare)
        with pytest.raises(ValueError, match="two"):
            ahead.take(2, prepare)
        assert thread.is_alive()
        ahead.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()

    def test_wakes_who_waits_if_another_thread_failed(self) -> None:
        ahead, raised = Ahead(PARTS, 1), []
        ahead.take(1, lambda tensor, place: Prepared())

        def wait() -> None:
            with pytest.raises(Stopped):
                ahead.take(2, lambda tensor, place: Prepared())
            raised.append(True)

        thread = started(wait)
        ahead.stop()
        thread.join(PATIENCE)
        assert raised == [True]


def built(folder: Path, name: str, numerics: Numerics, threads: int) -> tuple[bytes, ShardRecord]:
    """Return what a method makes of four matrices."""
    shapes = {f"w{number}": (40 + number, 33) for number in range(4)}
    models, spec = models_of_method(folder, name, shapes, numerics)
    with tuned(**SMALL):
        record = models.build(spec, threads=threads)
    return (folder / "out.safetensors").read_bytes(), record


@pytest.mark.parametrize(
    ("name", "numerics"),
    [("ties", FLOAT32), ("ties", MERGEKIT), ("iso_c", FLOAT32), ("karcher", MERGEKIT)],
)
class TestBuilds:
    def test_several_tensors_are_made_ready_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, numerics: Numerics
    ) -> None:
        expected, record = built(tmp_path, name, numerics, 1)
        # as many as this wait for each other
        together, prepare = threading.Barrier(2), NativeLane.prepare

        def waiting(self: NativeLane, tensor: int, place: int) -> Prepared:
            if tensor < 2:
                together.wait(PATIENCE)
            return prepare(self, tensor, place)

        monkeypatch.setattr(NativeLane, "prepare", waiting)
        for threads in (2, 5):
            found, own = built(tmp_path, name, numerics, threads)
            assert found == expected
            assert (own.passes, own.probes, own.deltas) == (
                record.passes,
                record.probes,
                record.deltas,
            )
