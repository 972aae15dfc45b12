"""The engine's files: what it refuses to read, and how its output comes to be."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers import engine_cases as cases
from helpers.engine_cases import FILE, Models, assert_same, normal
from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import ShardSpec, delta_name
from shardmerge.base import claims
from shardmerge.base.errors import UserError
from shardmerge.engine.device import check_device

SHAPE = (41, 333)


@pytest.fixture
def pair(tmp_path: Path) -> Models:
    return Models(tmp_path, {"a": {"w": normal(SHAPE, 1)}, "b": {"w": normal(SHAPE, 2)}})


def half_sum(pair: Models, code: str = "F16") -> ShardSpec:
    """Return a sum, which native code computes, but not as float64."""
    return pair.spec({
        "w": (code, ex.Linear(((0.5, pair.source("a")), (0.25, pair.source("b"))))),
        "copy": ("F16", pair.source("b")),
    })  # fmt: skip


def same(pair: Models, model: str = "a") -> ShardSpec:
    return pair.spec({"w": ("F16", pair.source(model))})


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with the library and the test helpers on its path."""
    paths = [*sys.path, str(Path(cases.__file__).parents[1])]
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


class TestRefusedInputs:
    """What is not as the plan says is told before anything is written."""

    @staticmethod
    def refused(pair: Models, spec: ShardSpec, **values: object) -> str:
        before = sorted(pair.folder.iterdir())
        with pytest.raises(UserError) as caught:
            pair.build(spec, **values)
        assert sorted(pair.folder.iterdir()) == before
        return str(caught.value)

    @pytest.mark.parametrize(
        "changed",
        [
            {"w": torch.zeros(SHAPE, dtype=torch.bfloat16)},
            {"w": torch.zeros(SHAPE[::-1], dtype=torch.float16)},
        ],
        ids=["dtype", "shape"],
    )
    def test_another_dtype_or_shape(self, pair: Models, changed: dict[str, torch.Tensor]) -> None:
        spec = half_sum(pair)
        cases.write_file(pair.paths["b", FILE], changed)
        message = self.refused(pair, spec)
        for word in ("'b'", FILE, "'w'", "F16", "snakemake lock"):
            assert word in message

    def test_a_missing_tensor(self, pair: Models) -> None:
        spec = half_sum(pair)
        cases.write_file(pair.paths["b", FILE], {"wx": normal(SHAPE, 1)})
        message = self.refused(pair, spec)
        assert "no tensor 'w'" in message
        assert "'wx'" in message

    def test_a_missing_path(self, pair: Models) -> None:
        spec = half_sum(pair)
        del pair.paths["b", FILE]
        assert "model 'b'" in self.refused(pair, spec)

    def test_a_missing_file(self, pair: Models) -> None:
        spec = half_sum(pair)
        pair.paths["b", FILE].unlink()
        assert "b.safetensors" in self.refused(pair, spec)

    def test_a_file_that_was_cut_off(self, pair: Models) -> None:
        spec = half_sum(pair)
        os.truncate(pair.paths["b", FILE], 5000)
        assert "cut off" in self.refused(pair, spec)

    def test_a_file_that_is_cut_while_it_is_read(
        self, pair: Models, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: 0)
        for spec in (half_sum(pair), same(pair)):
            assert "cut while it was read" in self.refused(pair, spec)

    def test_shapes_that_do_not_go_together(self, tmp_path: Path) -> None:
        models = Models(tmp_path, {"a": {"w": normal((3,), 1)}, "b": {"w": normal((4,), 1)}})
        terms = ex.Linear(((1.0, models.source("a")), (1.0, models.source("b"))))
        message = self.refused(models, models.spec({"w": ("F16", terms)}))
        assert "[4]" in message
        assert "'w'" in message

    def test_stored_deltas_of_another_kind(self, pair: Models) -> None:
        delta = ex.Delta(pair.source("a"), pair.source("b"), "F16")
        spec = pair.spec({"w": ("F16", ex.Linear(((1.0, pair.source("a")), (0.5, delta))))})
        stored = pair.folder / "d.safetensors"
        cases.write_file(stored, {delta_name(delta, spec.files): torch.zeros(3)})
        assert "stored task vectors" in self.refused(pair, spec, deltas=[stored])

    def test_an_output_that_is_an_input(self, pair: Models) -> None:
        before = pair.paths["a", FILE].read_bytes()
        with pytest.raises(UserError, match="not overwritten"):
            pair.build(half_sum(pair), "a.safetensors")
        assert pair.paths["a", FILE].read_bytes() == before

    def test_an_unknown_device(self, pair: Models) -> None:
        for device in ("tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1\n", "cuda:\u0661", "cpu:0"):
            assert "Known here: cpu, cuda" in self.refused(pair, half_sum(pair), device=device)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_a_device_that_is_not_there(self, pair: Models) -> None:
        for device in ("cuda", "cuda:0", "cuda:7"):
            assert "no CUDA device" in self.refused(pair, half_sum(pair, "F64"), device=device)

    def test_a_card_too_many(self, pair: Models, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        found = self.refused(pair, half_sum(pair, "F64"), device="cuda:2")
        assert "no device 'cuda:2', but 2 from cuda:0 on" in found
        check_device("cuda:1")


class TestOddFiles:
    """Tensors that begin at any byte: other writers do not pad their headers."""

    def test_equal_those_of_aligned_files(self, tmp_path: Path) -> None:
        results = []
        for odd in (False, True):
            tables = {
                "a": {"b": torch.arange(5, dtype=torch.uint8), "w": normal(SHAPE, 1, "F32")},
                "b": {"w": normal(SHAPE, 2, "F64")},
            }
            models = Models(tmp_path / str(odd), tables, odd)
            total = ex.Linear(((0.5, models.source("a")), (0.25, models.source("b"))))
            rows = {"w": ("F32", total), "b": ("U8", models.source("a", "b"))}
            results.append(models.build(models.spec(rows)).sha256)
        assert results[0] == results[1]

    def test_an_odd_file_is_copied_with_a_header_of_our_own(self, tmp_path: Path) -> None:
        models = Models(tmp_path, {"a": {"w": normal(SHAPE, 1)}}, odd=True)
        assert not models.build(same(models)).whole_copy
        assert_same(models.load()["w"], models.tensors["a"]["w"])


class TestWholeCopy:
    """A shard that equals a source file is made from it as a whole."""

    @pytest.mark.parametrize("link", ["clone", "copy", "hard"])
    def test_equals_the_source(self, pair: Models, link: str) -> None:
        source = pair.paths["a", FILE]
        source.chmod(0o440)
        for _ in range(2):  # the second time over what is there
            record = pair.build(same(pair), link=link)
            made = pair.folder / "out.safetensors"
            assert record.whole_copy
            assert record.size == source.stat().st_size
            assert made.read_bytes() == source.read_bytes()
            assert made.samefile(source) == (link == "hard")
            assert record.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
        assert stat.S_IMODE(source.stat().st_mode) == 0o440
        assert not list(pair.folder.glob(".*"))

    def test_needs_no_torch(self, pair: Models) -> None:
        script = (
            "import sys, pathlib\n"
            "from shardmerge.engine import build_shard\n"
            "from shardmerge.algebra.expression import Source\n"
            "from shardmerge.algebra.spec import OutputTensor, ShardSpec\n"
            "folder = pathlib.Path(sys.argv[1])\n"
            f"source = Source('a', {FILE!r}, 'w', 'F16', {SHAPE})\n"
            f"spec = ShardSpec((OutputTensor('w', 'F16', {SHAPE}, source),), {{}})\n"
            f"paths = {{('a', {FILE!r}): folder / 'a.safetensors'}}\n"
            "record = build_shard(spec, paths, folder / 'out.safetensors')\n"
            "assert record.whole_copy\n"
            "assert record.peak_memory < 80_000_000, record.peak_memory\n"
            "assert 'torch' not in sys.modules\n"
        )
        done = run(script, pair.folder)
        assert done.returncode == 0, done.stderr

    def test_shares_blocks_where_the_file_system_can(
        self, pair: Models, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reflink(target: int, request: int, source: int) -> int:
            assert request == 0x40049409
            return os.write(target, os.pread(source, 1 << 20, 0))

        monkeypatch.setattr(fcntl, "ioctl", reflink)
        record = pair.build(same(pair))
        made = pair.folder / "out.safetensors"
        assert record.bytes_written == 0
        assert made.read_bytes() == pair.paths["a", FILE].read_bytes()
        assert pair.build(same(pair), link="copy").bytes_written == record.size

    @pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
    def test_a_link_to_another_file_system_becomes_a_copy(self, pair: Models, shm: Path) -> None:
        pair.paths = {k: Path(shutil.copy(p, shm)) for k, p in pair.paths.items()}
        record = pair.build(same(pair), link="hard")
        assert record.bytes_written == record.size
        assert_same(pair.load()["w"], pair.tensors["a"]["w"])

    def test_other_metadata_is_no_whole_copy(self, pair: Models) -> None:
        spec = pair.spec({"w": ("F16", pair.source("a"))}, metadata={"format": "np"})
        assert not pair.build(spec).whole_copy

    def test_bytes_after_the_last_tensor_are_no_whole_copy(self, pair: Models) -> None:
        with pair.paths["a", FILE].open("ab") as file:
            file.write(b"more")
        assert not pair.build(same(pair)).whole_copy


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    folder = Path("/dev/shm") / f"shardmerge-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


class TestDirectWrites:
    """O_DIRECT where it is taken, plain writes where it is refused, the same bytes."""

    @pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a tmpfs")
    def test_on_a_memory_file_system(self, pair: Models, shm: Path) -> None:
        spec = half_sum(pair)
        first = pair.build(spec)
        pair.folder = shm
        assert pair.build(spec).sha256 == first.sha256

    @pytest.mark.parametrize("where", ["open", "first write", "third write"])
    def test_where_it_is_refused(
        self, pair: Models, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        spec = half_sum(pair)
        with cases.tuned(**cases.SMALL):
            first = pair.build(spec, "first.safetensors")
            refused = _refuse_direct(monkeypatch, where)
            second = pair.build(spec, "second.safetensors")
        assert refused
        assert second.sha256 == first.sha256
        written = [(pair.folder / f"{n}.safetensors").read_bytes() for n in ("first", "second")]
        assert written[0] == written[1]

    def test_short_writes_go_on(self, pair: Models, monkeypatch: pytest.MonkeyPatch) -> None:
        spec, pwrite = half_sum(pair), os.pwrite
        first = pair.build(spec, "first.safetensors")
        with cases.tuned(windows=(16384,)):
            monkeypatch.setattr(os, "pwrite", lambda fd, b, at: pwrite(fd, b[:4096], at))
            pair.build(spec, "second.safetensors")
        written = [(pair.folder / f"{n}.safetensors").read_bytes() for n in ("first", "second")]
        assert written[0] == written[1]
        assert hashlib.sha256(written[0]).hexdigest() == first.sha256

    def test_where_space_cannot_be_reserved(
        self, pair: Models, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = pair.build(half_sum(pair)).sha256
        monkeypatch.setattr(ctypes, "CDLL", _library(errno.EOPNOTSUPP))
        assert pair.build(half_sum(pair)).sha256 == first

    @pytest.mark.parametrize("when", ["at once", "later"])
    def test_a_full_disk(self, pair: Models, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
        if when == "at once":
            monkeypatch.setattr(ctypes, "CDLL", _library(errno.ENOSPC))
        else:

            def full(fd: int, buffer: memoryview, offset: int) -> int:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(os, "pwrite", full)
        before = sorted(pair.folder.iterdir())
        with cases.tuned(**cases.SMALL), pytest.raises(UserError, match="free some space"):
            pair.build(half_sum(pair), threads=2)
        assert sorted(pair.folder.iterdir()) == before


def _refuse_direct(monkeypatch: pytest.MonkeyPatch, where: str) -> list[str]:
    """Make the system refuse O_DIRECT at some point; return a list that fills as it does."""
    refused: list[str] = []
    real_open, real_write = os.open, os.pwrite
    writes = 0

    def open_(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            refused.append("open")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags, *rest)

    def pwrite(fd: int, buffer: memoryview, offset: int) -> int:
        nonlocal writes
        writes += 1
        direct = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        if direct and writes >= (1 if where == "first write" else 3):
            refused.append("write")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_write(fd, buffer, offset)

    if where == "open":
        monkeypatch.setattr(os, "open", open_)
    else:
        monkeypatch.setattr(os, "pwrite", pwrite)
    return refused


def _library(code: int) -> Callable[..., object]:
    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        @staticmethod
        def fallocate(*_: object) -> int:
            ctypes.set_errno(code)
            return -1

    return Library


class TestWholeOrNothing:
    """An output is there with all its bytes or not at all, and leftovers go."""

    SCRIPT = (
        "import os, signal, sys, pathlib\n"
        "from helpers import engine_cases as cases\n"
        "from shardmerge.algebra import expression as ex\n"
        "models = cases.Models(pathlib.Path(sys.argv[1]),\n"
        "    {m: {'w': cases.normal((300, 333), i)} for i, m in enumerate('ab')})\n"
        "total = ex.Linear(((0.5, models.source('a')), (0.25, models.source('b'))))\n"
        "def progress(done, whole):\n"
        "    if 2 * done > whole:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "with cases.tuned(**cases.SMALL):\n"
        "    models.build(models.spec({'w': ('F16', total)}), progress=progress)\n"
    )

    def test_a_killed_writer_leaves_no_output(self, tmp_path: Path) -> None:
        assert run(self.SCRIPT, tmp_path).returncode == -signal.SIGKILL
        assert not (tmp_path / "out.safetensors").exists()
        (left,) = tmp_path.glob(".*.part")
        models = Models(tmp_path, {m: {"w": normal((300, 333), i)} for i, m in enumerate("ab")})
        models.build(same(models), "other.safetensors")
        assert left.exists()  # it may be another output's
        models.build(same(models), "out.safetensors")
        assert not left.exists()

    def test_while_it_is_written_it_is_claimed(self, pair: Models) -> None:
        seen = []

        def progress(done: int, total: int) -> None:
            seen.append(claims.holder(pair.folder / "out.safetensors"))

        pair.build(half_sum(pair), progress=progress)
        assert seen
        assert {owner.pid for owner in seen} == {os.getpid()}
        assert claims.holder(pair.folder / "out.safetensors") is None

    @pytest.mark.parametrize("link", ["clone", "copy"])
    def test_a_leftover_hard_link_is_not_written_through(self, pair: Models, link: str) -> None:
        source = pair.paths["a", FILE]
        before = source.read_bytes()
        os.link(source, pair.folder / f".out.safetensors.{os.getpid()}.part")
        pair.build(same(pair, "b"), link=link)
        assert source.read_bytes() == before
        assert not list(pair.folder.glob(".*"))

    def test_what_was_there_stays_until_the_new_one_is_whole(self, pair: Models) -> None:
        made = pair.folder / "out.safetensors"
        made.write_bytes(b"old")
        seen = []

        def progress(done: int, total: int) -> None:
            seen.append(made.read_bytes())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pair.build(half_sum(pair), progress=progress)
        assert seen == [b"old"]
        assert made.read_bytes() == b"old"
        assert not list(pair.folder.glob(".*"))

    def test_mode_follows_the_umask(self, pair: Models) -> None:
        before = os.umask(0o027)
        try:
            for name, spec in (("x", half_sum(pair)), ("y", same(pair))):
                pair.build(spec, name)
                assert stat.S_IMODE((pair.folder / name).stat().st_mode) == 0o640
        finally:
            os.umask(before)

    def test_names_with_wildcards(self, pair: Models) -> None:
        stale = pair.folder / ".[x]*.safetensors.1.part"
        other = pair.folder / ".x?.safetensors.1.part"
        stale.touch()
        other.touch()
        pair.build(half_sum(pair), "[x]*.safetensors")
        assert other.exists()
        assert not stale.exists()

    @pytest.mark.parametrize("stage", ["read", "compute", "write", "finish"])
    def test_an_error_in_any_thread_ends_the_job(
        self, pair: Models, monkeypatch: pytest.MonkeyPatch, stage: str
    ) -> None:
        from shardmerge.engine.native_lane import NativeLane
        from shardmerge.engine.stream import Stream

        def broken(self: object, slot: object) -> None:
            if slot.window.index == 3:
                raise ZeroDivisionError(stage)

        owner, name = (NativeLane, "compute") if stage == "compute" else (Stream, f"_{stage}")
        monkeypatch.setattr(owner, name, broken)
        before = sorted(pair.folder.iterdir())
        with cases.tuned(**cases.SMALL), pytest.raises(ZeroDivisionError, match=stage):
            pair.build(half_sum(pair), threads=3)
        assert sorted(pair.folder.iterdir()) == before
        assert not [t for t in threading.enumerate() if t.name.startswith("shard-")]

    def test_empty_shards_and_tensors(self, tmp_path: Path) -> None:
        tensors = {"w": torch.empty(0, 7, dtype=torch.float16)}
        models = Models(tmp_path, {"a": tensors, "b": tensors})
        total = ex.Linear(((0.5, models.source("a")), (0.25, models.source("b"))))
        for rows in ({}, {"w": ("BF16", total)}):
            record = models.build(models.spec(rows))
            assert record.size == (tmp_path / "out.safetensors").stat().st_size
            assert list(models.load()) == list(rows)
