"""Building one shard: the public face of the engine."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from shardmerge import expression as ex
from shardmerge.engine.algebra import simplify
from shardmerge.engine.device import Cuda, Host, Slot, check_device, host_buffer
from shardmerge.engine.inputs import Inputs
from shardmerge.engine.layout import Layout, Window, choose_window, lay_out
from shardmerge.engine.memory import TUNING
from shardmerge.engine.output import OutputFile, clone, hard_link, remove_stale
from shardmerge.engine.pipeline import Pipeline
from shardmerge.engine.record import ShardRecord, Tally, peak_memory
from shardmerge.errors import UserError
from shardmerge.files import atomic_path
from shardmerge.spec import ShardSpec

Progress = Callable[[int, int], None]


def build_shard(
    spec: ShardSpec,
    inputs: Mapping[tuple[str, str], Path],
    output: Path,
    *,
    deltas: Sequence[Path] = (),
    threads: int = 1,
    device: str = "cpu",
    link: Literal["clone", "copy", "hard"] = "clone",
    progress: Progress | None = None,
) -> ShardRecord:
    """Build one safetensors file from its specification, whole or not at all.

    Args:
        spec: What the file holds.
        inputs: Local path of each (model, file) that ``spec.required_files`` names, less those
            that only stored task vectors need.
        output: File to write.
        deltas: Files of stored task vectors (tensors named by ``spec.delta_name``), used where
            they hold one of the specification; all others are computed in passing.
        threads: Compute threads; they change the time, never a bit.
        device: Where is computed, ``cpu`` or ``cuda``.
        link: How a shard that equals a source file is made: sharing its blocks where the file
            system can (``clone``, else a copy), by ``copy``, or as a second name (``hard``).
        progress: Called with bytes done and bytes in all, from this thread.

    Returns:
        What it took and what was found on the way.

    Raises:
        UserError: If a file is not what the specification says, a merged value is infinite or
            NaN where no source is and the specification does not allow it, or the disk is full.
    """
    output = Path(output)
    tally = Tally()
    with contextlib.ExitStack() as stack:
        with tally.timed("start"):
            remove_stale(output)
            opened = stack.enter_context(Inputs(spec, inputs, deltas, tally))
            _not_an_input(output, opened)
            layout = lay_out(spec, opened)
            if layout.computes:
                check_device(device)
                stack.enter_context(_one_torch_thread())
        stream = _Stream(spec, opened, layout, tally, threads, device, progress)
        sha256 = _make(stream, output, link)
        return ShardRecord(
            sha256=sha256,
            size=layout.size,
            bytes_read=tally.read,
            bytes_written=tally.written,
            seconds=tally.seconds(),
            nonfinite=dict(sorted(tally.nonfinite.items())),
            deltas=_delta_rows(spec, tally),
            whole_copy=layout.twin is not None,
            peak_memory=peak_memory(),
        )


def _make(stream: _Stream, output: Path, link: str) -> str:
    """Make the output in the way that suits it; return its SHA-256."""
    layout, tally = stream.layout, stream.tally
    source = None if layout.twin is None else stream.inputs.path(layout.twin)
    if source and link == "hard" and hard_link(source, output):
        return stream.run(None)
    finish = contextlib.ExitStack()
    with finish:
        part = finish.enter_context(atomic_path(output))
        if source and link != "copy" and clone(source, part):
            sha256 = stream.run(None)
        else:
            with OutputFile(part, layout.size) as file:
                sha256 = stream.run(file)
                file.finish()
        _refuse_nonfinite(stream.spec, tally)
        with tally.timed("write"):
            finish.close()
    return sha256


class _Stream:
    """One pass over the windows of a layout."""

    def __init__(
        self,
        spec: ShardSpec,
        inputs: Inputs,
        layout: Layout,
        tally: Tally,
        threads: int,
        device: str,
        progress: Progress | None,
    ) -> None:
        self.spec, self.inputs, self.layout, self.tally = spec, inputs, layout, tally
        self._device, self._progress = device, progress
        lanes = max(threads, 2 if device == "cuda" else 1)
        self._lanes = min(lanes, TUNING.slots - 4)
        self._hash = hashlib.sha256()
        self._done = 0

    def run(self, file: OutputFile | None) -> str:
        """Send all windows through, to a file unless None; return the SHA-256 of all bytes."""
        layout, tally = self.layout, self.tally
        computes = layout.computes
        with tally.timed("start"):
            length, arena = choose_window(layout, TUNING)
            windows = list(layout.windows(length))
            pinned = computes and self._device == "cuda"
            slots = [
                Slot(*(host_buffer(n, tensor=computes, pinned=pinned) for n in (length, arena)))
                for _ in range(min(TUNING.slots, len(windows)))
            ]
            stop: Callable[[], None] = lambda: None  # noqa: E731
            compute: list[Callable[[Slot], None]] = [lambda slot: None]
            if computes:
                compute, stop = self._make_lanes(windows)
        self._file = file
        self._ahead = windows
        Pipeline(
            slots,
            read=self._read,
            compute=compute,
            write=self._write if file else None,
            finish=self._finish,
            stop=stop,
        ).run(windows)
        return self._hash.hexdigest()
