"""What no merge job can be faster than: reading its sources, hashing and writing its result.

``python -m tools.bench.bound OUTPUT MODEL ...`` reads models of one layout, hashes the first one's
bytes as merge jobs do, and writes them, shards side by side on two cores, in the threads and
buffers of a merge job. It computes nothing, and starts no Snakemake.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

from shardmerge.base.files import fill_from
from shardmerge.base.hashing import quick_hasher
from shardmerge.engine.device import host_buffer
from shardmerge.engine.memory import TUNING
from shardmerge.engine.output import OutputFile
from shardmerge.engine.pipeline import Pipeline

#: Bytes of a window; a merge job of three models has such.
_WINDOW = 1 << 20


def move(sources: Sequence[Path], output: Path) -> str:
    """Read files of one size, write the first one's bytes to a new file; return their SHA-256."""
    size = sources[0].stat().st_size
    hashes = hashlib.sha256(), quick_hasher()

    def windows() -> Iterator[SimpleNamespace]:
        for index, offset in enumerate(range(0, size, _WINDOW)):
            yield SimpleNamespace(index=index, offset=offset, length=min(_WINDOW, size - offset))

    with ExitStack() as stack:
        opened = [stack.enter_context(open(path, "rb", buffering=0)) for path in sources]
        made = stack.enter_context(OutputFile(output, size))

        def read(slot: SimpleNamespace) -> None:
            window = slot.window
            for file, buffer in zip(opened, slot.buffers, strict=True):
                into = buffer.memory[: window.length]
                fill_from(file.fileno(), file.name, window.offset, into)

        def write(slot: SimpleNamespace) -> None:
            made.write(slot.buffers[0].memory, slot.window.length, slot.window.offset)

        def finish(slot: SimpleNamespace) -> None:
            for found in hashes:
                found.update(slot.buffers[0].memory[: slot.window.length])

        slots = [
            SimpleNamespace(buffers=[host_buffer(_WINDOW, tensor=False) for _ in sources])
            for _ in range(TUNING.slots)
        ]
        pipeline = Pipeline(
            slots, read=read, compute=[lambda slot: None], write=write, finish=finish
        )
        pipeline.run(list(windows()))
        made.finish()
    with open(output, "rb") as written:
        os.fsync(written.fileno())
    return hashes[0].hexdigest()


def main() -> None:
    output, *models = map(Path, sys.argv[1:])
    output.mkdir()
    names = sorted(path.name for path in models[0].glob("*.safetensors"))
    sources = [[model / name for model in models] for name in names]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(move, sources, [output / name for name in names]))  # raises what a job did


if __name__ == "__main__":
    main()
