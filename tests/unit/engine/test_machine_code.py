"""Code that another process made is the code that is made here, and does the same."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llvmlite import binding

from shardmerge.engine import heap_text, machine_code, native, philox
from shardmerge.engine.machine_code import ObjectCode
from shardmerge.engine.native import assembly
from shardmerge.methods.program import Program

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")

#: The second one ends with another constant, so that it gives something else.
PROGRAMS = [
    Program(("F32", "F32"), (("mul", (0, 0)), ("add", (2, 1)), ("mul", (3, k))), 4, "F32", (3,))
    for k in range(2)
]
#: Memory of code is freed with what holds it.
KEPT: list[machine_code._Code] = []
TEXTS = [assembly(program) for program in PROGRAMS]


def made_of(
    texts: list[str], effort: int = 2
) -> tuple[machine_code._Code, list[Any], list[ObjectCode]]:
    """Make code as a process does that has none; return that, the functions and what it tells."""
    code, told = machine_code._Code(), []
    KEPT.append(code)
    code.listener = told.append
    return code, code.functions(texts, 2), told


def results(function: Callable[..., None]) -> bytes:
    """Return all that a program's function writes for some numbers."""
    numbers = np.random.default_rng(1).standard_normal((2, 4096), "f4")
    out, sums = np.zeros(4096, "f4"), (ctypes.c_double * 64)()
    addresses = (ctypes.c_void_p * 2)(*(row.ctypes.data for row in numbers))
    function(out.ctypes.data, addresses, out.size, (ctypes.c_double * 2)(0.3, 1.7), sums)
    assert out.any()
    return out.tobytes() + bytes(sums)


def sections(data: bytes) -> dict[bytes, bytes]:
    """Return what is in an object file, less names."""
    file = binding.ObjectFileRef.from_data(data)
    found = {one.name(): one.data() for one in file.sections() if one.size()}
    return {name: data for name, data in found.items() if b"sym" not in name and b"str" not in name}


class TestLoaded:
    def test_does_what_code_that_is_made_does(self) -> None:
        _, functions, (made,) = made_of(TEXTS)
        other = machine_code._Code()
        other.listener = pytest.fail  # it makes nothing
        assert other.add(made)
        loaded = other.functions(TEXTS, 2)
        assert [*map(results, loaded)] == [*map(results, functions)]
        assert len({*map(results, loaded)}) == 2

    def test_is_what_llvm_makes_in_memory(self) -> None:
        """The way of object files makes no other code than LLVM's engine by itself."""
        for text in (*TEXTS, heap_text.heap_text(), philox.stream_text()):
            _, _, (made,) = made_of([text])
            module = binding.parse_assembly(text)
            machine = machine_code._machine(*machine_code._processor(), 2)
            kept: list[bytes] = []
            engine = binding.create_mcjit_compiler(module, machine)
            engine.set_object_cache(lambda _, data, kept=kept: kept.append(data))
            engine.finalize_object()
            assert sections(made.data) == sections(kept[0])
            assert any(map(len, sections(made.data).values()))

    def test_what_is_there_stays(self) -> None:
        code, functions, (made,) = made_of(TEXTS)
        assert not code.add(made)
        _, _, (both,) = made_of([TEXTS[1], heap_text.heap_text()])
        assert code.add(both)
        assert code.functions(TEXTS, 2) == functions
        assert results(code.functions(TEXTS, 2)[1]) == results(functions[1])

    def test_of_another_processor_or_effort_has_another_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code, _, told = made_of(TEXTS)
        code.functions(TEXTS, 0)
        name, features = machine_code._processor()
        monkeypatch.setattr(machine_code, "_processor", lambda: (name, features + ",-avx512f"))
        code.functions(TEXTS, 2)
        assert len({name for made in told for name in made.names}) == 3 * len(TEXTS)


def test_a_process_tells_what_it_makes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "_CODE", machine_code._Code())
    told: list[ObjectCode] = []
    machine_code.tell_of_code(told.append)
    for _ in range(2):
        machine_code.compiled(TEXTS[0])
        machine_code.compiled_together([TEXTS[1], TEXTS[0], TEXTS[1]])
    assert [len(made.names) for made in told] == [1, 1]
    assert not machine_code.take_over(told[0])


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_loaded_code_takes_no_more_memory_than_said() -> None:
    def own() -> int:
        with open("/proc/self/status") as file:
            (row,) = (line.split() for line in file if line.startswith("RssAnon:"))
            return int(row[1]) * 1024

    made = []
    for number in range(60):
        text = assembly(PROGRAMS[0]) + f"\n; {number}"
        made += made_of([text])[2]
    code = machine_code._Code()
    code.add(made[0])  # what the first one takes besides is the engine's
    before = own()
    assert all(map(code.add, made[1:]))
    assert own() - before <= sum(one.room for one in made)
