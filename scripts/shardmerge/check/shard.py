"""A written shard, read again: all its bytes against the record of the job that wrote them.

And its header against the plan, and a sample of every tensor against the sources.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shardmerge.algebra.leaves import calls_in_passes, is_copied, simplify
from shardmerge.algebra.samples import Runs, positions, sample_runs
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.hashing import FileHash, Hasher, bound_hash, hasher_like
from shardmerge.base.identities import stamp_of
from shardmerge.check.error_bounds import Estimate
from shardmerge.check.float_formats import FLOAT_FORMATS, decoded, half_ulp, round_to, stored_dtype
from shardmerge.check.kernels import TooLargeError, UndecidedError
from shardmerge.check.leaves import OpenLeaves, described
from shardmerge.check.recompute import Recomputer
from shardmerge.check.samples import TensorFile, ranges_of
from shardmerge.check.statistics import Statistics
from shardmerge.engine.watch import Watch
from shardmerge.methods.registry import Recorded

#: Share of a tensor's elements for which a method may have chosen otherwise at a near tie.
_UNDECIDED = 1e-3
_HINT = "The shard is damaged or was not made from these sources: delete it and build it again."


@dataclass
class _Findings:
    elements: int = 0
    verbatim: int = 0
    independent: int = 0
    by_engine: int = 0
    probed: int = 0
    nonfinite: int = 0
    undecided: int = 0
    largest: float = 0.0
    largest_at: str | None = None
    not_sampled: list[str] = field(default_factory=list)


class ToldShard(Protocol):
    """What a job recorded of the shard that it wrote: ``plan.records.MergeRecord`` has it.

    Attributes:
        sha256: Of the shard; None to hash nothing.
        xxh3: Of the shard and that SHA-256; without one the SHA-256 is compared.
        passes: Of each tensor what was found of whole tensors, call by call: it is verified
            instead of found once more.
        probes: Of each tensor what was recorded of calls that are too large to be recomputed.
    """

    @property
    def sha256(self) -> str | None: ...

    @property
    def xxh3(self) -> str | None: ...

    @property
    def passes(self) -> Mapping[str, Sequence[Sequence[Any]]]: ...

    @property
    def probes(self) -> Mapping[str, Sequence[Recorded]]: ...


def check_shard(
    spec: ShardSpec,
    shard: Path,
    sources: Mapping[tuple[str, str], Path],
    deltas: Iterable[Path],
    told: ToldShard | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Check a shard that was written; return what was found, as JSON-able data.

    A copied tensor's elements must be the source's bit for bit. A computed one's must lie within
    the bound of ``recompute`` and half a unit in the last place of the output's type.

    Args:
        spec: What the shard must hold.
        shard: The file.
        sources: Local path of each (model, file) that ``spec.required_files`` names.
        deltas: Files of stored task vectors.
        told: What the job that wrote it recorded; without it nothing is hashed, and all that was
            found of whole tensors is found once more.
        watch: Compares the sources with what the workflow's first process found; without one they
            are only kept from changing while they are read.

    Raises:
        UserError: If anything is not as it must be; names tensor, position, expected and found.
    """
    deltas, watch, stamp = list(deltas), watch or Watch(), stamp_of(shard)
    for path in (shard, *deltas):
        watch.begin(path)
    for key, path in sources.items():
        watch.begin(path, spec.files.get(key))
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(TensorFile(shard))
        _check_header(spec, output)
        written = _Written(spec, output)
        whole = None
        if told and told.sha256:
            kind = hasher_like(told.xxh3 or told.sha256)
            whole = FileHash(shard, kind, excerpts=written.ranges())
            written.hashed = stack.enter_context(whole)
        leaves = OpenLeaves(spec, sources, deltas, stack, shard.parent)
        recomputer = Recomputer(spec.numerics, leaves.stored, leaves.read, leaves)
        findings = _Findings()
        statistics = Statistics(recomputer)
        for tensor in spec.tensors:
            calls = calls_in_passes(simplify(tensor.expression), spec.numerics)
            found = told.passes.get(tensor.name, ()) if told else ()
            recomputer.forget(dict(zip(calls, found, strict=False)))
            probes = told.probes.get(tensor.name, ()) if told else ()
            allowed = spec.allow_nonfinite
            _check_tensor(
                tensor, written, leaves, recomputer, probes, allowed, findings, statistics
            )
        if whole:
            _check_bytes(shard, whole.result(), told.sha256, told.xxh3)
        watch.confirm()
    return {
        "shard": Path(shard).name,
        "spec": spec.digest,
        "passed": True,
        "tensors": len(spec.tensors),
        "elements": findings.elements,
        "sha256": told.sha256 if told else None,
        "stamp": list(stamp),
        "copies": findings.verbatim,
        "recomputed_independently": findings.independent,
        "recomputed_by_engine_steps": findings.by_engine,
        "verified_by_probes": findings.probed,
        "largest_error_in_bounds": findings.largest,
        "largest_error_at": findings.largest_at,
        "undecided": findings.undecided,
        "nonfinite": findings.nonfinite,
        "not_sampled": findings.not_sampled,
        "statistics": statistics.to_json(),
    }


class _Written:
    """The tensors of a shard.

    Args:
        spec: What it holds.
        file: The shard, whose header is as the specification says.

    Attributes:
        runs: Of each tensor the elements that are looked at.
        hashed: Reads the whole file, and keeps these elements; without it they are read.
    """

    def __init__(self, spec: ShardSpec, file: TensorFile) -> None:
        self.file, self._entries = file, file.header.tensors
        self.runs = {one.name: sample_runs(one.name, math.prod(one.shape)) for one in spec.tensors}
        self.hashed: FileHash | None = None

    def ranges(self) -> list[tuple[int, int]]:
        """Return where the elements lie, as (offset, bytes), ascending."""
        return sorted(one for name in self.runs for one in self._ranges(name))

    def _ranges(self, name: str) -> list[tuple[int, int]]:
        return ranges_of(self._entries[name], self.runs[name])

    def sample(self, name: str) -> np.ndarray:
        """Return a tensor's elements that are looked at, as they are stored."""
        if not self.hashed:
            return self.file.read(self._entries[name], self.runs[name])
        dtype = stored_dtype(self._entries[name].dtype)
        return np.frombuffer(self.hashed.excerpt(self._ranges(name)), dtype)

    def read(self, name: str, runs: Runs) -> np.ndarray:
        """Return elements of a tensor, float64."""
        entry = self._entries[name]
        return decoded(self.file.read(entry, runs), entry.dtype)


def check_hash(path: Path, found: str, recorded: str) -> None:
    """Refuse a shard whose hash is not the one in its record.

    Raises:
        UserError: If it is another.
    """
    if found != recorded:
        raise UserError(
            f"is damaged: its hash is {found}, but {recorded} was recorded when it was written",
            str(path),
            f"Delete {str(path)!r} and run the workflow again, which makes it anew.",
        )


def _check_bytes(path: Path, found: Hasher, sha256: str, xxh3: str | None) -> None:
    told = found.hexdigest() if xxh3 is None else bound_hash(found, sha256)
    check_hash(path, told, xxh3 or sha256)


def _check_header(spec: ShardSpec, output: TensorFile) -> None:
    where, tensors = str(output.path), output.header.tensors
    wanted = [tensor.name for tensor in spec.tensors]
    found = list(tensors)
    # tensors without elements have no place of their own in the order of the data
    empty = {tensor.name for tensor in spec.tensors if 0 in tensor.shape}
    if set(found) != set(wanted):
        name = next(n for n in [*wanted, *found] if (n in wanted) != (n in tensors))
        raise UserError(f"{'lacks' if name in wanted else 'has a stray'} tensor {name!r}", where)
    for tensor in spec.tensors:
        entry = tensors[tensor.name]
        if (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
            raise UserError(
                f"is {described(entry)} instead of {tensor.dtype}{list(tensor.shape)}",
                f"{where}, tensor {tensor.name!r}",
                _HINT,
            )
    if [n for n in found if n not in empty] != [n for n in wanted if n not in empty]:
        raise UserError("has its tensors in another order than the plan", where, _HINT)
    if dict(output.header.metadata) != dict(spec.metadata or {"format": "pt"}):
        raise UserError(f"has metadata {dict(output.header.metadata)!r}", where, _HINT)
    end = output.header.size + sum(entry.end - entry.begin for entry in tensors.values())
    if output.size != end:
        raise UserError(f"has {output.size} bytes, but its tensors make {end}", where, _HINT)


def _check_tensor(
    tensor: OutputTensor,
    written: _Written,
    leaves: OpenLeaves,
    recomputer: Recomputer,
    recorded: Sequence[Recorded],
    allow_nonfinite: bool,
    findings: _Findings,
    statistics: Statistics,
) -> None:
    where = f"{written.file.path}, tensor {tensor.name!r}"
    if not (runs := written.runs[tensor.name]):
        return
    stored = written.sample(tensor.name)
    floating, expression = tensor.dtype in FLOAT_FORMATS, simplify(tensor.expression)
    copied = is_copied(expression, tensor.dtype, leaves.stored)
    found = decoded(stored, tensor.dtype) if floating else stored
    nonfinite = 0
    if floating:
        nonfinite = len(found) - int(np.count_nonzero(np.isfinite(found)))
        findings.nonfinite += nonfinite
        statistics.add(tensor, runs, found, copied=copied)
    if copied:
        wanted = leaves.read(expression, runs)
        bad = stored.view(f"u{stored.itemsize}") != wanted.view(f"u{wanted.itemsize}")
        if bad.any():
            shown = decoded(wanted, tensor.dtype) if floating else wanted
            _fail(where, tensor, runs, int(bad.argmax()), found, shown, " exactly (it is a copy)")
        findings.verbatim += 1
        findings.elements += len(stored)
        return
    try:
        read = partial(written.read, tensor.name)
        probed = recomputer.probe(tensor, recorded, read, finite=not allow_nonfinite)
        estimate = recomputer.estimate(tensor.expression, runs, tensor.dtype)
    except (TooLargeError, UndecidedError):
        findings.not_sampled.append(tensor.name)
        return
    with np.errstate(all="ignore"):
        bad, ratio = _compare(found, estimate, tensor.dtype)
    if nonfinite and not allow_nonfinite:
        bad |= ~np.isfinite(found) & np.isfinite(estimate.value)
    if estimate.decides and bad.sum() <= _UNDECIDED * len(bad):
        findings.undecided += int(bad.sum())
    elif bad.any():
        index = int(bad.argmax())
        bound = float(estimate.error[index])
        within = f", give or take {bound:.3g} and rounding" if bound else ", rounded"
        _fail(where, tensor, runs, index, found, estimate.value, within)
    findings.independent += estimate.independent
    findings.probed += probed and not estimate.independent
    findings.by_engine += not (probed or estimate.independent)
    findings.elements += len(stored)
    largest = float(np.max(ratio[~bad] if bad.any() else ratio, initial=0.0))
    if largest > findings.largest:
        findings.largest, findings.largest_at = largest, tensor.name


def _compare(found: np.ndarray, estimate: Estimate, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which elements are wrong, and every element's error in units of its tolerance."""
    value, error = estimate.value, estimate.error
    largest = np.abs(value)
    largest += error
    tolerance = half_ulp(dtype, largest)
    tolerance += error
    distance = np.abs(found - value)
    good = distance <= tolerance * (1 + 2.0**-40)
    if good.all() and tolerance.max(initial=0.0) < np.inf:
        ratio = distance / tolerance
    else:
        good |= (found == value) | (np.isnan(found) & np.isnan(value))
        # beyond the largest number the only rounding is to infinity
        overflowed = np.isinf(found) & (largest >= FLOAT_FORMATS[dtype].overflow)
        overflowed &= (np.sign(found) == np.sign(value)) | np.isinf(error)
        good |= overflowed | np.isinf(error)
        known = np.isfinite(distance) & np.isfinite(tolerance)
        ratio = np.where(known, distance / tolerance, 0.0)
    exact = error == 0
    if exact.any():
        rounded = round_to(dtype, value)
        equal = (found == rounded) & (np.signbit(found) == np.signbit(rounded))
        equal |= np.isnan(found) & np.isnan(rounded)
        good = (good & ~exact) | (equal & exact)
    return ~good, ratio


def _fail(
    where: str,
    tensor: OutputTensor,
    runs: Runs,
    index: int,
    found: np.ndarray,
    wanted: np.ndarray,
    within: str,
) -> None:
    element = int(positions(runs)[index])
    place = [int(i) for i in np.unravel_index(element, tensor.shape)]
    raise UserError(
        f"element {place} is {found[index].item()!r}, but must be {wanted[index].item()!r}{within}",
        where,
        _HINT,
    )
