"""The files that a job reads, checked against its specification before anything is computed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import FileLeaf, leaf_sources
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import fill_from, fill_ranges, will_need
from shardmerge.base.hashing import hasher_like
from shardmerge.base.safetensors import Header, TensorEntry, read_header
from shardmerge.engine.locations import AnyLocation, Location, locate, span_ranges
from shardmerge.engine.record import Tally
from shardmerge.engine.stored import StoredDelta
from shardmerge.engine.tasks import TensorTask
from shardmerge.engine.watch import Watch
from shardmerge.engine.witness import Witness


class InputFiles(contextlib.AbstractContextManager):
    """The open source files and stored task vectors of a job.

    Args:
        spec: The shard that is built.
        tasks: Of its tensors.
        inputs: Local path of each (model, file) of the specification that must be read.
        stored: Where task vectors lie that are read and not computed.
        tally: Where bytes read are counted.
        sums: For files of stored task vectors, the XXH3 of each tensor as the job that wrote it
            recorded it: what is read is compared with that.
        watch: Knows what the files must be.
        beside: A folder where there is room for what is too large for memory.

    Raises:
        UserError: If a file is missing, unreadable, or not what the specification says.
    """

    def __init__(
        self,
        spec: ShardSpec,
        tasks: Sequence[TensorTask],
        inputs: Mapping[tuple[str, str], Path],
        stored: Mapping[ex.Delta, StoredDelta],
        tally: Tally,
        sums: Mapping[Path, Mapping[str, str]] | None = None,
        watch: Watch | None = None,
        beside: Path | None = None,
    ) -> None:
        self._spec, self._inputs, self.stored = spec, inputs, stored
        self.beside = beside
        self._tally = tally
        self._sums = sums or {}
        self._watch = watch or Watch()
        self._witnesses: dict[int, Witness] = {}
        self._identities: dict[int, str] = {}
        self._open = contextlib.ExitStack()
        self._numbers: dict[Path | tuple[str, str], int] = {}
        self._paths: list[Path] = []
        self._fds: list[int] = []
        self._locations: dict[FileLeaf, AnyLocation] = {}
        self.headers: list[Header] = []
        try:
            self._open_all(tasks)
            for leaf in (leaf for task in tasks for leaf in task.reads):
                self.locate(leaf)
            self._make_witnesses()
        except BaseException:
            self._open.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def locate(self, leaf: FileLeaf) -> AnyLocation:
        """Return where a tensor of the specification lies, or rows of one."""
        if leaf not in self._locations:
            self._locations[leaf] = locate(leaf, self._tensor)
        return self._locations[leaf]

    def path(self, file: int) -> Path:
        """Return an open file's path."""
        return self._paths[file]

    def size(self, file: int) -> int:
        """Return an open file's size in bytes."""
        return os.fstat(self._fds[file]).st_size

    def will_need(self, file: int, offset: int, length: int) -> None:
        """Tell the kernel that a range will be read soon."""
        will_need(self._fds[file], offset, length)

    def read_elements(self, leaf: AnyLocation, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements of a leaf, as ``read`` does with bytes."""
        leaf.read(self.read, first, count, into)

    def read_spans(
        self, leaf: AnyLocation, spans: Sequence[tuple[int, int]], into: memoryview
    ) -> bool:
        """Fill the beginning of a buffer with spans of a leaf's elements, one after the other.

        Returns:
            Whether that is done: of a leaf that lies in a file as it is, which is not hashed.
        """
        ranges = span_ranges(leaf, spans)
        if ranges is None or leaf.file in self._witnesses:
            return False
        fill_ranges(self._fds[leaf.file], self._paths[leaf.file], ranges, into)
        self._tally.add(read=sum(length for _, length in ranges))
        return True

    def read(self, file: int, offset: int, into: memoryview) -> None:
        """Fill a buffer with a file's bytes from an offset on.

        Raises:
            UserError: If the file cannot be read or has become shorter.
        """
        fill_from(self._fds[file], self._paths[file], offset, into)
        if witness := self._witnesses.get(file):
            witness.saw(offset, into)
        self._tally.add(read=len(into))

    def confirm(self, twin: int | None, sha256: str) -> dict[str, str]:
        """Make sure that what was read is what the plan and the records say.

        Args:
            twin: Number of the file that the output equals byte for byte, or None.
            sha256: The output's.

        Returns:
            The SHA-256 of each source file that is known by a sample and was read whole.

        Raises:
            UserError: If a stored task vector is damaged, or a file changed meanwhile.
        """
        for number, witness in self._witnesses.items():
            found = witness.finish(partial(self.read, number))
            _compare_sums(found, self._sums[self._paths[number]], self._paths[number])
        hashed = {} if twin is None else {twin: sha256}
        self._watch.confirm({self._paths[number]: one for number, one in hashed.items()})
        known = {self._identities.get(number): one for number, one in hashed.items()}
        return {name: one for name, one in known.items() if name and name.startswith("sample:")}

    def _open_all(self, tasks: Sequence[TensorTask]) -> None:
        """Open the files of stored task vectors, then those of sources, in order of first use."""
        for place in self.stored.values():
            if place.path not in self._numbers:
                self._numbers[place.path] = self._add(place.path, None)
        leaves = (leaf for task in tasks for leaf in task.reads)
        for source in (source for leaf in leaves for source in leaf_sources(leaf)):
            key = source.model, source.file
            if key not in self._numbers:
                self._numbers[key] = self._add(self._path_of(key), self._spec.files.get(key))

    def _path_of(self, key: tuple[str, str]) -> Path:
        if key not in self._inputs:
            raise UserError(f"no local path was given for file {key[1]!r}", f"model {key[0]!r}")
        return Path(self._inputs[key])

    def _add(self, path: Path, identity: str | None) -> int:
        self._watch.begin(path, identity)
        if identity:
            self._identities[len(self._fds)] = identity
        self.headers.append(read_header(path))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open.callback(os.close, fd)
        self._paths.append(path)
        self._fds.append(fd)
        return len(self._fds) - 1

    def _tensor(self, tensor: ex.Source | ex.Delta) -> Location:
        """Return where a tensor lies, once it is known to be what the specification says."""
        if isinstance(tensor, ex.Delta):
            place = self.stored[tensor]
            number, name = self._numbers[place.path], place.name
            where = f"stored task vectors in {place.path}"
        else:
            number, name = self._numbers[tensor.model, tensor.file], tensor.tensor
            where = f"model {tensor.model!r}, file {tensor.file!r}"
        tensors = self.headers[number].tensors
        if name not in tensors:
            raise UserError(
                f"has no tensor {name!r} (read from {self._paths[number]})",
                where,
                did_you_mean(name, tensors),
            )
        entry = tensors[name]
        _compare(entry, name, tensor.dtype, tensor.shape, where)
        return Location(number, entry.begin, entry.dtype)

    def _make_witnesses(self) -> None:
        """Have the stored task vectors hashed whose files have a record."""
        for path in dict.fromkeys(place.path for place in self.stored.values()):
            if path in self._sums:
                number = self._numbers[path]
                entries = self.headers[number].tensors
                read = [one for one in self.stored if one in self._locations]
                names = [self.stored[one].name for one in read if self.stored[one].path == path]
                parts = {name: (entries[name].begin, entries[name].end) for name in names}
                told = next(iter(self._sums[path].values()), "")
                self._witnesses[number] = Witness(parts, partial(hasher_like, told))


def _compare(entry: TensorEntry, name: str, dtype: str, shape: tuple[int, ...], where: str) -> None:
    if (entry.dtype, entry.shape) != (dtype, tuple(shape)):
        raise UserError(
            f"tensor {name!r} is {entry.dtype}{list(entry.shape)}, but the plan was made for "
            f"{dtype}{list(shape)}",
            where,
            "The file changed since the lock was made: run `snakemake lock` to renew it.",
        )


def _compare_sums(found: Mapping[str, str], wanted: Mapping[str, str], path: Path) -> None:
    for name, digest in found.items():
        if wanted.get(name) != digest:
            raise UserError(
                "is damaged: its hash is not the one that was recorded when it was written",
                f"stored task vectors in {path}, tensor {name!r}",
                f"Delete {str(path)!r} and run the workflow again, which makes it anew.",
            )
