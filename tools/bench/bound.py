"""What no merge job can be faster than: reading its sources, hashing and writing its result.

``python -m tools.bench.bound OUTPUT MODEL ...`` reads models of one layout, hashes the first one's
bytes as merge jobs do, and writes them, shards side by side on two cores, in the threads and
buffers of a merge job. It computes nothing, and starts no Snakemake. With ``--back`` it then reads
each shard back from the disk, as checks do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

from shardmerge.base.files import fill_from
from shardmerge.base.hashing import FileHash, quick_hasher
from shardmerge.engine.device import host_buffer
from shardmerge.engine.memory import TUNING
from shardmerge.engine.output import OutputFile
from shardmerge.engine.pipeline import Pipeline

#: Bytes of a window; a merge job of three models has such.
_WINDOW = 1 << 20


def move(sources: Sequence[Path], output: Path) -> str:
    """Read files of one size, write the first one's bytes to a new file; return their XXH3."""
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
    return hashes[1].hexdigest()


def read_back(path: Path) -> str:
    """Return the XXH3 of a file, which is read past the page cache if it was written past it."""
    with FileHash(path, quick_hasher()) as found:
        return found.result().hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--back", action="store_true", help="read the results back")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("models", type=Path, nargs="+")
    args = parser.parse_args()
    args.output.mkdir()
    names = sorted(path.name for path in args.models[0].glob("*.safetensors"))
    with ProcessPoolExecutor(2) as pool:
        moved = {
            pool.submit(move, [model / name for model in args.models], args.output / name): name
            for name in names
        }
        read = {}
        for done in as_completed(moved):
            digest = done.result()  # raises what a job did
            if args.back:  # behind what is not written yet, as checks are
                read[pool.submit(read_back, args.output / moved[done])] = digest
    if any(found.result() != digest for found, digest in read.items()):
        raise SystemExit("the disk gave other bytes than were written")


if __name__ == "__main__":
    main()
