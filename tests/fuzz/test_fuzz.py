"""A few thousand cases of every target, always the same, and every case that once failed."""

from __future__ import annotations

import os
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from fuzz.mutation import mutate_bytes
from fuzz.running import Target, cases, run_cases
from fuzz.targets import CORPUS, names, target
from shardmerge.base.errors import UserError

#: Those of which a case takes more than a few milliseconds.
_SLOW = ("plan", "config-plan", "lock", "hub", "recipe", "configuration")
_PAST = [path for name in names() for path in sorted((CORPUS / name).glob("*"))]


@pytest.mark.parametrize("name", names())
def test_ends_in_success_or_a_sentence(name: str) -> None:
    faults = run_cases(target(name), seed=0, count=50 if name in _SLOW else 300)
    assert not faults, "\n\n".join(f"{fault.place}\n{fault.trace}" for fault in faults)


@pytest.mark.parametrize("path", _PAST, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_failed_once(path: Path) -> None:
    one = target(path.parent.name)
    again = Target(one.name, (path.read_bytes(),), lambda rng, data: data, one.run)
    faults = run_cases(again, seed=0, count=1)
    assert not faults, f"{faults[0].place}\n{faults[0].trace}"


class TestTheFuzzer:
    """It finds what it is there to find."""

    def faults(self, run: Any) -> list[str]:
        one = Target("t", (b"abc",), mutate_bytes, run)
        return [fault.place for fault in run_cases(one, seed=1, count=3)]

    def test_success_and_sentences_are_no_faults(self) -> None:
        def refuse(data: bytes) -> None:
            raise UserError("no")

        assert self.faults(len) == self.faults(refuse) == []

    def test_traceback(self) -> None:
        (place,) = self.faults(lambda data: {}[data])
        assert place.startswith("KeyError at test_fuzz.py:")

    def test_memory(self) -> None:
        (place,) = self.faults(lambda data: bytearray(3 << 30))
        assert place.startswith("MemoryError")

    def test_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fuzz.running.SECONDS", 0.2)

        def hang(data: bytes) -> None:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                pass

        (place,) = self.faults(hang)
        assert place.startswith("_TooLong")

    def test_killed(self) -> None:
        assert self.faults(lambda data: os.kill(os.getpid(), signal.SIGKILL)) == [
            "t: the process ended with -9"
        ]

    def test_same_cases_every_time(self) -> None:
        one = target("header")
        first, second = (list(islice(cases(one, 5), 20)) for _ in range(2))
        assert first == second and len(set(first)) > 10


@pytest.mark.parametrize("name", names())
def test_a_target_accepts_what_is_real(name: str) -> None:
    """Else its cases would all end at the first check."""
    one = target(name)

    def accepts(data: bytes) -> bool:
        try:
            one.run(data)
        except UserError:
            return False
        return True

    assert any(map(accepts, one.seeds))


def test_corpus_is_of_targets() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(names())
    assert all(Path(path).stat().st_size < 100_000 for path in CORPUS.rglob("*") if path.is_file())
