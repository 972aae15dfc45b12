"""The files that a job reads, checked against its specification before anything is computed."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import FileLeaf, file_leaves
from shardmerge.algebra.rows import row_ranges
from shardmerge.algebra.spec import ShardSpec, delta_name
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import read_into, will_need
from shardmerge.base.safetensors import Header, TensorEntry, read_header
from shardmerge.engine.record import Tally
from shardmerge.engine.watch import Watch
from shardmerge.engine.witness import Witness


@dataclass(frozen=True)
class Location:
    """Where a leaf's bytes lie.

    Args:
        file: Number of the open file.
        begin: First byte of the tensor.
        dtype: Its code.
        table, width: Which of its rows the leaf has, and their elements; None for all in order.
    """

    file: int
    begin: int
    dtype: str
    table: str | None = None
    width: int = 0

    def ranges(self, first: int, count: int) -> Iterator[tuple[int, int, int | None]]:
        """Yield (position, length, offset in the file or None for zeros) of elements, in bytes."""
        size = DTYPES[self.dtype].size
        if self.table is None:
            yield 0, count * size, self.begin + first * size
            return
        for position, length, source in row_ranges(self.table, self.width, first, count):
            offset = None if source is None else self.begin + source * size
            yield position * size, length * size, offset


class Inputs(contextlib.AbstractContextManager):
    """The open source files and stored task vectors of a job.

    Args:
        spec: The shard that is built.
        inputs: Local path of each (model, file) of the specification that must be read.
        deltas: Files of stored task vectors.
        tally: Where bytes read are counted.
        sums: For files of stored task vectors, the SHA-256 of each tensor as the job that wrote it
            recorded it: what is read is compared with that.
        watch: Knows what the files must be.

    Raises:
        UserError: If a file is missing, unreadable, or not what the specification says.
    """

    def __init__(
        self,
        spec: ShardSpec,
        inputs: Mapping[tuple[str, str], Path],
        deltas: Sequence[Path],
        tally: Tally,
        sums: Mapping[Path, Mapping[str, str]] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._tally = tally
        self._sums = sums or {}
        self._watch = watch or Watch()
        self._witnesses: dict[int, Witness] = {}
        self._identities: dict[int, str] = {}
        self._open = contextlib.ExitStack()
        self._paths: list[Path] = []
        self._fds: list[int] = []
        self._locations: dict[FileLeaf, Location] = {}
        self.headers: list[Header] = []
        try:
            self._find_deltas(spec, deltas)
            self.stored = frozenset(self._locations)
            numbers = {
                key: self._add(key, inputs, spec.files.get(key))
                for key in spec.required_files(self.stored)
            }
            for tensor in spec.tensors:
                for leaf in file_leaves(tensor.expression, self.stored):
                    if leaf not in self._locations:
                        self._locations[leaf] = self._find(leaf, numbers)
        except BaseException:
            self._open.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def locate(self, leaf: FileLeaf) -> Location:
        """Return where a tensor of the specification lies."""
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

    def read_elements(self, leaf: Location, first: int, count: int, into: memoryview) -> None:
        """Fill a buffer with elements of a leaf, as ``read`` does with bytes."""
        for position, length, offset in leaf.ranges(first, count):
            part = into[position : position + length]
            if offset is None:
                part[:] = bytes(length)
            else:
                self.read(leaf.file, offset, part)

    def read(self, file: int, offset: int, into: memoryview) -> None:
        """Fill a buffer with a file's bytes from an offset on.

        Raises:
            UserError: If the file cannot be read or has become shorter.
        """
        done = 0
        while done < len(into):
            try:
                count = read_into(self._fds[file], into[done:], offset + done)
            except OSError as error:
                where = str(self._paths[file])
                raise UserError(f"cannot be read ({error.strerror})", where) from None
            if count == 0:
                raise UserError(
                    f"ends before byte {offset + len(into)}: it was cut while it was read",
                    str(self._paths[file]),
                )
            done += count
        if witness := self._witnesses.get(file):
            witness.saw(offset, into)
        self._tally.add(read=done)

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

    def _add(
        self, key: tuple[str, str], inputs: Mapping[tuple[str, str], Path], identity: str | None
    ) -> int:
        if key not in inputs:
            raise UserError(f"no local path was given for file {key[1]!r}", f"model {key[0]!r}")
        return self._add_file(Path(inputs[key]), identity)

    def _add_file(self, path: Path, identity: str | None = None) -> int:
        self._watch.begin(path, identity)
        if identity:
            self._identities[len(self._fds)] = identity
        self.headers.append(read_header(path))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open.callback(os.close, fd)
        self._paths.append(path)
        self._fds.append(fd)
        return len(self._fds) - 1

    def _find_deltas(self, spec: ShardSpec, paths: Sequence[Path]) -> None:
        """Locate the stored task vectors that the specification's expressions are made of."""
        if not paths:
            return
        wanted = {
            delta_name(delta, spec.files): delta
            for tensor in spec.tensors
            for delta in ex.deltas(tensor.expression)
        }
        for path in map(Path, paths):
            number, parts = self._add_file(path), {}
            for name, entry in self.headers[number].tensors.items():
                if delta := wanted.pop(name, None):
                    where = f"stored task vectors in {path}"
                    _compare(entry, name, delta.dtype, delta.shape, where)
                    self._locations[delta] = Location(number, entry.begin, entry.dtype)
                    parts[name] = (entry.begin, entry.end)
            if path in self._sums:
                self._witnesses[number] = Witness(parts)

    def _find(self, leaf: FileLeaf, numbers: Mapping[tuple[str, str], int]) -> Location:
        source = leaf.operand if isinstance(leaf, ex.Rows) else leaf
        found = self._check(source, numbers[source.model, source.file])
        if isinstance(leaf, ex.Rows):
            found = replace(found, table=leaf.table, width=math.prod(source.shape[1:]))
        return found

    def _check(self, source: ex.Source, number: int) -> Location:
        where = f"model {source.model!r}, file {source.file!r}"
        tensors = self.headers[number].tensors
        if source.tensor not in tensors:
            raise UserError(
                f"has no tensor {source.tensor!r} (read from {self._paths[number]})",
                where,
                did_you_mean(source.tensor, tensors),
            )
        entry = tensors[source.tensor]
        _compare(entry, source.tensor, source.dtype, source.shape, where)
        return Location(number, entry.begin, entry.dtype)


def _compare(entry: TensorEntry, name: str, dtype: str, shape: tuple[int, ...], where: str) -> None:
    if (entry.dtype, entry.shape) != (dtype, tuple(shape)):
        raise UserError(
            f"tensor {name!r} is {entry.dtype}{list(entry.shape)}, but the plan was made for "
            f"{dtype}{list(shape)}",
            where,
            "The file changed since the lock was made: run `snakemake lock` to renew it.",
        )


def _compare_sums(found: Mapping[str, str], wanted: Mapping[str, str], path: Path) -> None:
    for name, sha256 in found.items():
        if wanted.get(name) != sha256:
            raise UserError(
                "is damaged: its SHA-256 is not the one that was recorded when it was written",
                f"stored task vectors in {path}, tensor {name!r}",
                f"Delete {str(path)!r} and run the workflow again, which makes it anew.",
            )


def nbytes(leaf: FileLeaf) -> int:
    """Return the bytes of a leaf."""
    return math.prod(leaf.shape) * DTYPES[leaf.dtype].size
