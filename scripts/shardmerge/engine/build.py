"""Building one shard: the public face of the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.claims import claimed
from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.layout import lay_out
from shardmerge.engine.output import OutputFile, clone, hard_link
from shardmerge.engine.record import ShardRecord, Tally, peak_memory
from shardmerge.engine.stored import stored_deltas
from shardmerge.engine.stream import Progress, Stream
from shardmerge.engine.tasks import TensorTask, make_tasks
from shardmerge.engine.watch import Watch


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
    began: float | None = None,
    sums: Mapping[Path, Mapping[str, str]] | None = None,
    watch: Watch | None = None,
    tasks: Sequence[TensorTask] | None = None,
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
        device: Where is computed what native code does not: ``cpu``, ``cuda`` or ``cuda:N``.
        link: How a shard that equals a source file is made: sharing its blocks where the file
            system can (``clone``, else a copy), by ``copy``, or as a second name (``hard``).
        progress: Called with bytes done and bytes in all, from this thread.
        began: When the job began (``time.perf_counter``), if earlier than now: what its process
            took to start is then part of the record.
        sums: For files of stored task vectors, the XXH3 of each tensor as its record has it.
        watch: Compares the sources with what the workflow's first process found; without one they
            are only kept from changing while they are read.
        tasks: Of the tensors, with those task vectors stored, where they have been made already.

    Returns:
        What it took and what was found on the way.

    Raises:
        UserError: If a file is not what the specification says or changes meanwhile, a merged
            value is infinite or NaN where no source is and the specification does not allow it,
            or the disk is full.
    """
    output = Path(output)
    tally = Tally(began)
    with contextlib.ExitStack() as stack:
        with tally.timed("start"):
            stored = stored_deltas(spec, deltas)
            tasks = make_tasks(spec, stored) if tasks is None else tasks
            beside = output.parent
            files = InputFiles(spec, tasks, inputs, stored, tally, sums, watch, beside)
            stack.enter_context(files)
            _not_an_input(output, files)
            stack.enter_context(claimed(output))
            layout = lay_out(spec, tasks, files)
            stream = Stream(tasks, files, layout, tally, threads, device, progress)
        sha256, hashed = _make(stream, output, link, spec.allow_nonfinite)
        return ShardRecord(
            sha256=sha256,
            xxh3=stream.xxh3(),
            size=layout.size,
            bytes_read=tally.read,
            bytes_written=tally.written,
            seconds=tally.seconds(),
            nonfinite=dict(sorted(tally.nonfinite.items())),
            deltas=_delta_rows(tasks, tally),
            whole_copy=layout.twin is not None,
            hashed=hashed,
            tensors=stream.tensor_hashes(),
            passes=dict(sorted(tally.passes.items())),
            probes=tally.probes,
            peak_memory=peak_memory(),
        )


def _make(
    stream: Stream, output: Path, link: str, allow_nonfinite: bool
) -> tuple[str, dict[str, str]]:
    """Make the output in the way that suits it; return its SHA-256, and what it tells of sources.

    What a source's file turned out to be is its identity and its SHA-256.
    """
    layout, tally = stream.layout, stream.tally
    source = None if layout.twin is None else stream.files.path(layout.twin)
    if source and link == "hard" and hard_link(source, output):
        sha256 = stream.run(None)
        return sha256, stream.files.confirm(layout.twin, sha256)
    finish = contextlib.ExitStack()
    with finish:
        part = finish.enter_context(atomic_path(output))
        if source and link != "copy" and clone(source, part):
            sha256 = stream.run(None)
        else:
            with OutputFile(part, layout.size) as file:
                sha256 = stream.run(file)
                file.finish()
        if not allow_nonfinite:
            _refuse_nonfinite(tally)
        hashed = stream.files.confirm(layout.twin, sha256)
        with tally.timed("write"):
            finish.close()
    return sha256, hashed


def _not_an_input(output: Path, files: InputFiles) -> None:
    for file in range(len(files.headers)):
        if files.path(file).absolute() == output.absolute():
            raise UserError("is a source of this build and is not overwritten", str(output))


def _refuse_nonfinite(tally: Tally) -> None:
    if not tally.nonfinite:
        return
    name, count = min(tally.nonfinite.items())
    more = f" ({len(tally.nonfinite)} tensors have such values)" if len(tally.nonfinite) > 1 else ""
    raise UserError(
        f"{count} merged values are infinite or NaN where no source is{more}",
        f"tensor {name!r}",
        "The merge overflows the output's dtype, or divides by zero: use another dtype or smaller "
        "weights, or write `allow_nonfinite: true` to let it pass.",
    )


def _delta_rows(tasks: Sequence[TensorTask], tally: Tally) -> dict[str, list[list[Any]]]:
    """Return the record's rows of sums of squares, for the tensors that have task vectors."""
    table = {}
    for task in tasks:
        rows = []
        for delta, number in task.numbers.items():
            if (squares := tally.squares(task.tensor.name, number)) is not None:
                models = list(dict.fromkeys(source.model for source in ex.sources(delta)))
                rows.append([models, *squares])
        if rows:
            table[task.tensor.name] = rows
    return table
