"""Of which rows the rows of other tokens are made: by a donor's embeddings, or by parts of tokens.

Orthogonal matching pursuit: Pati, Rezaiifar and Krishnaprasad 1993,
https://doi.org/10.1109/ACSSC.1993.342465. For tokenizers: Goddard and Fernandes Neto 2025,
"Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit",
https://arxiv.org/abs/2506.06607.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from shardmerge.algebra.rows import expand_rows
from shardmerge.algebra.transplant import (
    ERRORS,
    MOST_PARTS,
    NO_ROW,
    ROWS,
    WEIGHTS,
    WORK_BYTES,
    DonorTensor,
    StoredTable,
    TransplantSpec,
)
from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import read_header
from shardmerge.base.unfinished import Unfinished
from shardmerge.engine.buffers import data_of, torch_dtype
from shardmerge.engine.poorly_trained import poorly_trained
from shardmerge.engine.pursuit import neighbours, pursue


@dataclass(frozen=True)
class RowTerms:
    """Of what rows are made.

    Args:
        rows: int32 [count, most], NO_ROW where there are fewer.
        weights: float32 [count, most].
        errors: float32 [count]: how far the same sum of the donor's rows is from the donor's row,
            relative to its norm; none where there is no donor.
    """

    rows: torch.Tensor
    weights: torch.Tensor
    errors: torch.Tensor | None = None

    @classmethod
    def empty(cls, spec: TransplantSpec) -> RowTerms:
        """Return tables without a term yet."""
        shape = spec.count, spec.most
        return cls(torch.full(shape, NO_ROW, dtype=torch.int32), torch.zeros(shape))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What is written."""
        errors = {} if self.errors is None else {ERRORS: self.errors}
        return {ROWS: self.rows, WEIGHTS: self.weights} | errors

    @property
    def told(self) -> str:
        """What is said of them in a log."""
        count = f"{len(self.rows)} rows"
        if self.errors is None or not len(self.errors):
            return count
        low, middle, high = torch.quantile(self.errors, torch.tensor([0.0, 0.5, 1.0])).tolist()
        return f"{count}; relative errors from {low:.3g} to {high:.3g}, median {middle:.3g}"


def from_parts(spec: TransplantSpec, parts: Sequence[Sequence[int]]) -> RowTerms:
    """Return rows that are made of those of each token's parts.

    Args:
        spec: Says how parts are weighted.
        parts: For each token the rows of its parts, in their order.

    Raises:
        UserError: If a token has too many parts, or one without a row.
    """
    made = RowTerms.empty(spec)
    for number, (ids, text) in enumerate(zip(parts, spec.texts, strict=True)):
        found: dict[int, float] = {}
        for part, weight in zip(ids, _part_weights(spec, len(ids)), strict=True):
            if weight:
                found[part] = found.get(part, 0.0) + weight
        if len(found) > spec.most:
            raise UserError(
                f"the token {text!r} is split into more than {min(spec.most, MOST_PARTS)} parts",
                None,
                "Give it a rule of its own under `tokens`.",
            )
        if lacking := [part for part in found if not part < spec.limit]:
            raise UserError(f"a part of the token {text!r} has id {lacking[0]} and no embedding")
        for place, part in enumerate(sorted(found)):
            made.rows[number, place] = part
            made.weights[number, place] = found[part] * spec.scale
    return made


def _part_weights(spec: TransplantSpec, count: int) -> list[float]:
    """Return each part's weight: the last leads an input embedding, the first an output one."""
    if spec.weighting == "sum":
        return [1.0] * count
    if spec.weighting == "first_last":
        led = 0 if spec.head else count - 1
        return [float(place == led) for place in range(count)]
    raw = [1] * count
    if spec.weighting == "weighted_mean":
        raw = list(range(count, 0, -1)) if spec.head else list(range(1, count + 1))
    return [one / sum(raw) for one in raw]


def from_donor(
    spec: TransplantSpec,
    files: Sequence[Path],
    *,
    threads: int = 1,
    device: str = "cpu",
    work: Unfinished | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RowTerms:
    """Return rows that are made of those of shared tokens as the donor's rows are.

    Args:
        spec: Says which, and how.
        files: That the donor's embedding lies in, then those of the tables of ``spec.trained``.
        threads: Of torch.
        device: torch's name of where it is computed.
        work: Keeps what is found so far, and has what an earlier run found.
        progress: Told how many rows are found.

    Raises:
        UserError: If the file is not as the plan has it, or holds values that are not finite.
    """
    torch.set_num_threads(threads)
    file, *others = files
    shared, own = _well_trained(spec, others)
    points, targets = (
        read_rows(spec.donor, file, rows).to(device)
        for rows in (shared, expand_rows(spec.donor.targets))
    )
    if not bool(points.isfinite().all() and targets.isfinite().all()):
        raise UserError(
            "the donor's embedding has infinite or NaN values", f"{file}, {spec.donor.tensor}"
        )
    own = torch.tensor(own, dtype=torch.int32)
    made, errors = RowTerms.empty(spec), torch.zeros(spec.count)
    tables = made.rows, made.weights, errors
    batch = _batch(spec, len(points))
    for first in range(_taken_over(work, tables), spec.count, batch):
        these = slice(first, first + batch)
        chosen, factors = _found(spec, targets[these], points)
        errors[these] = _errors(targets[these], points, chosen, factors)
        put_terms(made, these, own[chosen.cpu()], factors.cpu() * spec.scale)
        done = min(first + batch, spec.count)
        progress(done, spec.count)
        if work:
            work.keep({"rows": done}, map(data_of, tables), sum(one.nbytes for one in tables))
    return replace(made, errors=errors)


def _taken_over(work: Unfinished | None, tables: Sequence[torch.Tensor]) -> int:
    """Fill tables with what an earlier run found; return for how many rows that is."""
    done = work.done.get("rows") if work else None
    if type(done) is not int or not 0 <= done <= len(tables[0]):
        return 0
    if [len(data) for data in work.arrays] != [table.nbytes for table in tables]:
        return 0
    for table, data in zip(tables, work.arrays, strict=True):
        table.copy_(torch.frombuffer(data, dtype=table.dtype).view(table.shape))
    return done


def _found(
    spec: TransplantSpec, targets: torch.Tensor, points: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if spec.method == "omp":
        return pursue(targets, points, spec.most)
    return neighbours(targets, points, spec.most, spec.weighting, cosine=spec.cosine)


def _batch(spec: TransplantSpec, points: int) -> int:
    """Return how many tokens are worked on together."""
    width = spec.donor.shape[1]
    each = max(4 * points, 8 * (width * (spec.most + 8) + spec.most * spec.most))
    return max(WORK_BYTES // each, 1)


def _errors(
    targets: torch.Tensor, points: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor
) -> torch.Tensor:
    wanted = targets.double()
    made = torch.bmm(factors.unsqueeze(1), points[chosen].double()).squeeze(1)
    norms = wanted.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return ((made - wanted).norm(dim=1) / norms).float().cpu()


def put_terms(made: RowTerms, these: slice, found: torch.Tensor, factors: torch.Tensor) -> None:
    """Put terms into tables, by row, without those that have no weight; equal rows as one.

    Args:
        made: The tables.
        these: Which of its sums.
        found: Rows of each sum, [sums, terms].
        factors: The same, their weights.
    """
    rows, weights = made.rows[these], made.weights[these]
    for number, (ids, values) in enumerate(zip(found.tolist(), factors.tolist(), strict=True)):
        terms: dict[int, float] = {}
        for row, weight in zip(ids, values, strict=True):
            terms[row] = terms.get(row, 0.0) + weight
        kept = sorted(row for row, weight in terms.items() if _single(weight))
        rows[number, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
        weights[number, : len(kept)] = torch.tensor([terms[row] for row in kept])


def _single(weight: float) -> float:
    return float(torch.tensor(weight, dtype=torch.float32))


def _well_trained(spec: TransplantSpec, files: Sequence[Path]) -> tuple[list[int], list[int]]:
    """Return the donor's and the model's rows of shared tokens that both were trained on."""
    pairs = list(zip(expand_rows(spec.donor.shared), expand_rows(spec.own), strict=True))
    left = list(files)
    for place, model in enumerate(spec.trained):
        these, left = left[: len(model.tables)], left[len(model.tables) :]
        tables = zip(model.tables, these, strict=True)
        poor = poorly_trained(
            (read_rows(one, file, range(one.shape[0])) for one, file in tables),
            expand_rows(model.unused),
            tied=len(model.tables) == 1,
        )
        pairs = [pair for pair in pairs if pair[place] not in poor]
    if len(pairs) < spec.most:
        raise UserError(
            f"{len(pairs)} shared tokens are left that both models were trained on, and `k` asks "
            f"for {spec.most}",
            None,
            f"Write `k: {max(len(pairs), 1)}` at most, or leave `magikarp` out.",
        )
    return [row for row, _ in pairs], [row for _, row in pairs]


def read_rows(donor: DonorTensor | StoredTable, file: Path, rows: Sequence[int]) -> torch.Tensor:
    """Return rows of an embedding in float32, read a few at a time.

    Raises:
        UserError: If the file is not as the plan has it.
    """
    header = read_header(file)
    entry = header.tensors.get(donor.tensor)
    if entry is None or (entry.dtype, tuple(entry.shape)) != (donor.dtype, donor.shape):
        raise UserError(
            "is not as the plan has it",
            f"{file}, tensor {donor.tensor!r}",
            "The file changed since the plan was made.",
        )
    count, width = donor.shape
    dtype = torch_dtype(donor.dtype)
    found = torch.empty(len(rows), width)
    wanted, order = torch.tensor(rows, dtype=torch.long).sort()
    step = max(WORK_BYTES // (width * dtype.itemsize), 1)
    with open(file, "rb") as opened:
        opened.seek(entry.begin)
        for first in range(0, count, step):
            number = min(step, count - first)
            data = bytearray(opened.read(number * width * dtype.itemsize))
            if len(data) != number * width * dtype.itemsize:
                raise UserError("ends too early", str(file))
            begin, end = torch.searchsorted(wanted, torch.tensor([first, first + number])).tolist()
            read = torch.frombuffer(data, dtype=dtype).view(number, width)
            found[order[begin:end]] = read[wanted[begin:end] - first].float()
    return found


class MadeTensors(Protocol):
    """What a job finds of rows."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def told(self) -> str: ...


def terms_file(terms: MadeTensors) -> bytes:
    """Return a safetensors file with what rows are made from.

    Raises:
        UserError: If a row or a weight is not finite.
    """
    from safetensors.torch import save

    tensors = terms.tensors
    used = (one for name, one in tensors.items() if name != ERRORS)
    if not all(math.isfinite(float(one.abs().sum(dtype=torch.float64))) for one in used):
        raise UserError("rows or their weights are infinite or NaN")
    return save({name: one.contiguous() for name, one in tensors.items()})
