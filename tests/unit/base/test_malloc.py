"""Memory that was freed is kept, where the C library can be told so."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from shardmerge.base.malloc import keep_freed_memory

_SCRIPT = """
import resource
import numpy as np
from shardmerge.base.malloc import keep_freed_memory
if {keeps}:
    keep_freed_memory()
np.ones(1 << 19)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(1 << 19)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is another")
def test_arrays_take_no_new_pages() -> None:
    def faults(keeps: bool) -> int:
        script = _SCRIPT.format(keeps=keeps)
        made = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        return int(made.stdout)

    assert faults(keeps=True) < faults(keeps=False) / 4


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
