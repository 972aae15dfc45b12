"""Native code for aarch64: it is made of every text, calls nothing, and has the same bits."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llvmlite import binding

from helpers import method_bytes
from shardmerge.engine import (
    chance_turns,
    chances,
    choice_text,
    counting,
    heap_text,
    mersenne,
    native,
    parted_text,
    philox,
    quick_choice_text,
    quick_text,
    reductions,
    row_calls,
    row_ranks,
    row_steps,
)
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import RAISED, RAISED_SINGLE
from shardmerge.methods.program import Program, Reduction

TRIPLE = "aarch64-unknown-linux-gnu"
#: The architecture's least, and one with more.
PROCESSORS = ("generic", "neoverse-n1")
COUNT = 4096
#: Of keys that are kept.
ROOM = COUNT + 32
LEAVES = ("F16", "BF16", "F32")
VALUES = (  # numbered from 3, after the leaves
    *(("sub", (0, 1)), ("round F16", (3,)), ("mul", (4, 0)), ("add", (5, 2)), ("fma", (6, 1, 0))),
    *(("round BF16", (7,)), ("abs", (8,)), ("gt", (0, 1)), ("ge", (2, 1)), ("and", (10, 11))),
    *(("select", (12, 3, 9)), ("key", (13,)), ("full U32", (2,)), ("at least", (14, 15))),
    *(("select", (16, 13, 7)), ("times", (17, 0)), ("full F32", (3,)), ("eq", (18, 19))),
    *(("select", (20, 18, 2)), ("over", (21, 1)), ("wide", (22,)), ("single", (23,)), ("zero", ())),
)
WIDE = (
    *(("wide", (2,)), ("times", (3, 3)), ("full F64", (0,)), ("add", (4, 5)), ("exponent", (6,))),
    *(("mantissa", (6,)), ("times", (7, 8)), ("full F64", (5,)), ("add", (7, 10))),
    *(("power", (11,)), ("over", (9, 12))),
)
CONSTANTS = (0.3, 1.7, 0x3C000000, 0.0, 1.0, RAISED, RAISED_SINGLE)
POWERS = (("full F32", (6,)), ("add", (2, 3)), ("power", (4,)), ("times", (5, 0)))
MASKS = (("gt", (0, 1)), ("lt", (2, 1)))
KEYS = (("sub", (0, 1)), ("key", (3,)))
IN_ROW = Reduction(
    *(LEAVES[:2], (("row", (0, 0, 1)), ("times", (0, 2)), ("times", (3, 1))), (), "sums", (4, 2)),
    *(("F32",), "F32", True),
)
MASKED = Program(LEAVES[:2], (("load", (0,)), ("select", (2, 0, 1))), 3, "F16", (), loads=("BIT",))


def reduction(kind: str, steps: tuple, *values: int) -> Reduction:
    return Reduction(LEAVES, steps, (), kind, values)


#: Text and bytes of output.
CASES: dict[str, tuple[Callable[[], str], int]] = {
    "map": (lambda: native.assembly(Program(LEAVES, VALUES, 24, "BF16", (6, 4))), 2 * COUNT),
    "half": (lambda: native.assembly(Program(LEAVES, VALUES[:6], 7, "F16", ())), 2 * COUNT),
    "powers": (lambda: native.assembly(Program(LEAVES, POWERS, 6, "F32", ())), 4 * COUNT),
    "sums": (lambda: reductions._text(reduction("sums", WIDE, 4, 13), 1), 16 * COUNT),
    "halved": (lambda: reductions._text(reduction("sums", WIDE, 13), 8), COUNT),
    "single": (
        lambda: reductions._text(replace(reduction("sums", VALUES, 24, 9), code="F32"), 4),
        2 * COUNT,
    ),
    "row": (lambda: reductions._text(IN_ROW, 4), 2 * COUNT),
    "counts": (lambda: reductions._text(reduction("counts", MASKS, 3, 4), 1), 8 * 32),
    "maxima": (lambda: reductions._text(reduction("maxima", WIDE, 4, 13), 1), 16 * 32),
    "keys": (lambda: reductions._text(reduction("keys", KEYS, 4), 1), 4 * ((1 << 18) + 32)),
    "caught": (lambda: reductions._text(reduction("caught", KEYS, 4, 4), 1), 4 * 2 * ROOM),
    "marked": (
        lambda: reductions._text(reduction("marked", KEYS, 4, 4), 1),
        4 * (4 * ROOM + 2 * ROOM // 32),
    ),
    "less": (counting.less_text, 8 * COUNT),
    "last sums": (lambda: row_calls.last_text("sums"), 16),
    "last single sums": (lambda: row_calls.last_text("sums", "F32"), 16),
    "last maxima": (lambda: row_calls.last_text("maxima"), 16),
    "rows": (lambda: reductions._text(reduction("rows", VALUES[:4], 6, 3), 16), COUNT // 2),
    "pairs": (lambda: reductions._text(reduction("pairs", VALUES[:2], 4), 16), COUNT // 8),
    "lanes": (lambda: reductions._text(reduction("lanes", VALUES[:4], 6, 3), 1), 5 * 64),
    "numbers": (lambda: reductions._text(reduction("numbers", VALUES[:2], 4), 1), 5 * 4),
    "whole": (
        lambda: reductions._text(
            replace(reduction("whole", VALUES[:2], 4, 0, 4), ways=("numbers", "numbers", "pairs")),
            16,
        ),
        4 * (2 + 2 * COUNT // BLOCK),
    ),
    "ranks": (row_ranks.ranks_text, 4 * COUNT),
    "bits": (lambda: reductions._text(reduction("bits", KEYS, 4), 1), 4 * COUNT),
    "choice": (lambda: choice_text.choice_text(True), COUNT),
    "told": (lambda: choice_text.choice_text(False), COUNT),
    "quick": (quick_text.quick_text, 4 * COUNT),
    "told numbers": (lambda: quick_choice_text.numbers_text(descending=True), 4 * COUNT),
    "parts": (quick_choice_text.parts_text, 24),
    "chosen": (quick_choice_text.chosen_text, COUNT // 8),
    "heap": (heap_text.heap_text, 4 * COUNT),
    "counted stops": (lambda: parted_text.counts_text(64), 8 * COUNT // 64),
    "listed stops": (parted_text.listed_text, 4 * COUNT),
    "replaced stops": (parted_text.replaced_text, 4 * COUNT),
    "stream": (philox.stream_text, 32 * 56),
    "below": (chances.below_text, COUNT // 8),
    "masked": (lambda: native.assembly(MASKED), 2 * COUNT),
    "states": (mersenne.states_text, 624 * 4 * COUNT),
}


def machine(processor: str) -> binding.TargetMachine:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(TRIPLE)
    return target.create_target_machine(cpu=processor, opt=2, reloc="static", codemodel="large")


def parsed(text: str) -> binding.ModuleRef:
    module = binding.parse_assembly(text)
    module.verify()
    module.triple = TRIPLE
    return module


def assert_compiled(text: str) -> None:
    """Make code of a text; it calls nothing, since a library's functions have their own bits."""
    target = machine(PROCESSORS[0])
    code = target.emit_object(parsed(text))
    assert code[:4] == b"\x7fELF" and code[18:20] == b"\xb7\x00"
    assert set(re.findall(r"\bbl\s+(\S+)", target.emit_assembly(parsed(text)))) <= {"memset"}


@pytest.mark.parametrize("name", CASES)
def test_code_is_made(name: str) -> None:
    assert_compiled(CASES[name][0]())


@pytest.mark.parametrize("ranked", [True, False])
def test_code_that_calls_other_code_is_made(ranked: bool) -> None:
    assert_compiled(chance_turns.turns_text(ranked))


@pytest.mark.slow
@pytest.mark.skipif(not native.is_usable(), reason="no native code here")
def test_code_is_made_of_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = set()
    made = native.compiled

    def recorded(text: str, effort: int = 2) -> Callable[..., None]:
        texts.add(text)
        return made(text, effort)

    for module in (native, reductions, row_steps):
        monkeypatch.setattr(module, "compiled", recorded)
    caches = native.native, native.array_code, reductions.native_reduction
    for cache in (*caches, row_steps._driver, row_steps._last_code):
        cache.cache_clear()
    method_bytes.by_the_engine(tmp_path, {}, 1)
    assert len(texts) > len(CASES)
    for text in texts:
        assert_compiled(text)


#: Bytes behind what a function may write, by one vector more.
BEHIND = 1 << 16
#: What brings values to one number.
LAST = ("last sums", "last single sums", "last maxima")
#: What outputs hold, if not integers: any two NaNs are the same.
FLOATS = {"half": "<f2", "sums": "<f8", "halved": "<f8", "rows": "<f4", "pairs": "<f4"}
FLOATS |= {"row": "<f4", "lanes": "<f4", "numbers": "<f4", "maxima": "<f8", "single": "<f4"}
FLOATS |= dict.fromkeys(LAST, "<f8")
#: Those whose elements do not all go into few sums get infinities and NaNs too.
ANY = ("map", "half", "sums", "counts", "maxima", "keys", "caught", "marked")

#: Of elements at a boundary.
KEY = 0x3C000000
#: What else they are told, if not one row: rows, a bracket, or where values are and numbers go.
IN_ROWS = ("ranks", "quick", "choice", "told")
#: Rows, and buckets or how often parts fall apart.
MORE: dict[str, np.ndarray] = {"keys": np.array([0x3B000000, 10, 1 << 14, 0], "<i4")}
MORE |= dict.fromkeys(("lanes", "numbers"), np.array([COUNT // 4, 1], "<i8"))
BRACKETS = (0, 0, 0x3C000000, 1 << 22), (0, 0, 0x3D000000, 1 << 23)
MORE |= dict.fromkeys(("caught", "marked"), np.array([1, ROOM, *BRACKETS[0], *BRACKETS[1]], "<i8"))
MORE["less"] = np.array([KEY], "<i8")
MORE |= dict.fromkeys(IN_ROWS, np.array([4, 256], "<i8"))
MORE |= dict.fromkeys(LAST, np.array([2, 1000, 1], "<i8"))

#: Those that work on numbers of elements that are chosen.
CHOOSING = "told numbers", "parts", "chosen"
PARTING = ("counted stops", "listed stops", "replaced stops")
MORE |= dict.fromkeys(PARTING, np.array([0, KEY, COUNT], "<i8"))
MORE |= {
    "told numbers": np.array([0, COUNT, KEY, (1 << 31) - 1, 0, KEY - 1], "<i8"),
    "parts": np.array([COUNT, KEY, (1 << 31) - 1 + COUNT, COUNT // 2, COUNT, 3, 16], "<i8"),
    "chosen": np.array([COUNT, KEY, (1 << 31) - 1 + COUNT], "<i8"),
}

DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
void merge(void *, void **, long, double *, void *);
static void *get(long size) {
    void *p = aligned_alloc(64, (size + 127) / 64 * 64);
    if (size && fread(p, 1, size, stdin) != size) exit(1);
    return p;
}
int main(void) {
    long head[6];  /* leaves, bytes of each, of output, elements, constants, bytes of more */
    if (fread(head, 8, 6, stdin) != 6) return 1;
    void *leaves[16];
    for (long i = 0; i < head[0]; i++) leaves[i] = get(head[1]);
    double *constants = get(8 * head[4]);
    void *more = get(head[5]), *output = aligned_alloc(64, (head[2] + 127) / 64 * 64);
    memset(output, 0, head[2]);
    merge(output, leaves, head[3], constants, more);
    fwrite(output, 1, head[2], stdout);
    fwrite(more, 1, head[5], stdout);
    return 0;
}
"""


def leaves_of(name: str) -> list[np.ndarray]:
    """Return leaves of one size in bytes, with infinities, NaNs, subnormal numbers and zeros."""
    random = np.random.default_rng(3)
    if name in ("ranks", "quick"):
        keys = np.abs(random.standard_normal(COUNT)).astype("<f2").astype("<f4")
        return [keys.view("u1"), *(np.zeros(4 * COUNT, "u1") for _ in range(2)),
                np.zeros(4 * COUNT * 2, "u1"), np.ones(4 * COUNT, "u1")]  # fmt: skip
    if name in CHOOSING + PARTING:
        keys = random.integers(KEY - 20, KEY + 20, COUNT, np.uint32)
        equal = keys == KEY
        keys[keys > KEY] += COUNT
        keys[equal] += np.flatnonzero(equal).astype("<u4")
        stack = np.zeros(4 * COUNT, "u1")
        stack[:24] = np.array([0, COUNT, 24], "<i8").view("u1")
        return [np.append(np.uint32(0), keys)[:COUNT].view("u1"), stack]
    if name in ("choice", "told"):
        keys = np.abs(random.standard_normal(COUNT)).astype("<f2").astype("<f4")
        keys[::3] = 0
        numbers = random.integers(0, 1 << 32, COUNT, np.uint32)
        most = np.linspace(1 << 30, 3 << 30, COUNT // 4 + 1).astype("<u4")
        room = 4 * choice_text.room_of(COUNT // 4, 256)
        given = [one.view("u1") for one in (keys, numbers, most)]
        return [*given, *(np.zeros(size, "u1") for size in (COUNT, room))]
    if name == "less":
        keys = random.integers(KEY - 20, KEY + 20, COUNT, np.uint32)
        return [keys.view("u1"), np.sort(random.integers(0, COUNT, COUNT)).astype("<i8").view("u1")]
    if name in ("states", "stream"):
        stretches = np.array([(0, 1, 30, 0), (0, 3, 0, 0), (0, 0, 33, 0)], "<i8")
        return [random.integers(0, 256, 2500, np.uint8), stretches.view("u1").reshape(-1)]
    odd = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 6e-8, -6e-8, 1e-5, 65504.0, 1.0], "<f4")
    made = []
    for code in LEAVES:
        values = (random.standard_normal(COUNT) * 0.1).astype("<f4")
        if name in ANY:
            values[random.integers(0, COUNT, 200)] = random.choice(odd, 200)
        bits = values.astype("<f2") if code == "F16" else values
        made.append((values.view("<u4") >> 16).astype("<u2") if code == "BF16" else bits)
    return [np.resize(one.view("u1"), 4 * COUNT) for one in made]


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") and shutil.which("aarch64-linux-gnu-gcc")),
    reason="needs qemu-user and gcc-aarch64-linux-gnu",
)
@pytest.mark.skipif(not native.is_usable(), reason="no native code here")
# one works in place, the other is told addresses
@pytest.mark.parametrize("name", [one for one in CASES if one not in ("heap", "whole")])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_same_bits_by_an_emulator(tmp_path: Path, name: str, processor: str) -> None:
    make, size = CASES[name]
    leaves = leaves_of(name)
    room = max(len(one) for one in leaves)
    leaves = [np.concatenate([one, np.zeros(room - len(one), "u1")]) for one in leaves]
    more = np.zeros(4096, "u1")
    own = MORE.get(name, np.array([1], "<i8")).view("u1")
    more[: len(own)] = own
    count = {"states": 3, "stream": 56, **dict.fromkeys(LAST, 999)}
    count["counted stops"] = COUNT // 64
    count = COUNT // 4 if name in IN_ROWS else count.get(name, COUNT)
    (tmp_path / "code.o").write_bytes(machine(processor).emit_object(parsed(make())))
    (tmp_path / "main.c").write_text(DRIVER)
    built = ["aarch64-linux-gnu-gcc", "-static", "-o", "run", "main.c", "code.o"]
    subprocess.run(built, cwd=tmp_path, check=True)
    head = np.array([len(leaves), room, size, count, len(CONSTANTS), len(more)], "<i8")
    constants = np.array(CONSTANTS, "<f8")
    parts = (head, *leaves, constants, more)
    done = subprocess.run(
        ["qemu-aarch64", tmp_path / "run"],
        input=b"".join(part.tobytes() for part in parts),
        stdout=subprocess.PIPE,
        check=True,
    )
    output, *own = (
        np.append(one, np.zeros(BEHIND, "u1")) for one in (np.zeros(size, "u1"), *leaves)
    )
    addresses = (ctypes.c_void_p * len(own))(*(one.ctypes.data for one in own))
    function = native.compiled(make())
    function(output.ctypes.data, addresses, count, constants.ctypes.data, more.ctypes.data)
    for written, end in zip((output, *own), (size, *map(len, leaves)), strict=True):
        assert not written[end + 64 :].any(), "what lies behind it is another's"
    assert len(done.stdout) == size + len(more)
    found = np.frombuffer(done.stdout, "u1")
    np.testing.assert_array_equal(
        found[:size].view(FLOATS.get(name, "u1")), output[:size].view(FLOATS.get(name, "u1"))
    )
    np.testing.assert_array_equal(found[size:].view("<f8"), more.view("<f8"))
    assert np.count_nonzero(output) > 0
