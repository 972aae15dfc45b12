"""The pickled state in a journal of CMA-ES is read by harmless names alone."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from shardmerge.base.errors import UserError
from shardmerge.sweep.cma_state import unpickled

np = pytest.importorskip("numpy")


def test_a_state_comes_back() -> None:
    cmaes = pytest.importorskip("cmaes")
    made = cmaes.CMA(mean=np.zeros(3), sigma=1.0, seed=1, population_size=4)
    made.tell([(made.ask(), float(number)) for number in range(4)])
    found = unpickled(pickle.dumps(made).hex())
    assert found.generation == made.generation == 1
    assert found._mean.tolist() == made._mean.tolist()


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_what_asks_for_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"asks for posix\.mkdir"):
        unpickled(pickle.dumps(Harm(tmp_path / "harm")).hex())
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("text", ["", "zz", "80"])
def test_what_is_damaged_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="damaged"):
        unpickled(text)
