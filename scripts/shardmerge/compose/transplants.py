"""What a job finds out of tokens that a model lacks: a small source, from which rows are made."""

from __future__ import annotations

from collections.abc import Sequence

from shardmerge.algebra import expression as ex
from shardmerge.algebra.transplant import ERRORS, ROWS, WEIGHTS, TransplantSpec
from shardmerge.compose.made_sources import FileKey, MadeSource


def transplant(spec: TransplantSpec, files: Sequence[FileKey]) -> MadeSource:
    """Return what a job finds out of tokens that a model lacks.

    Args:
        spec: What it is told.
        files: That it reads; the first is the donor's, or of the tokenizer that splits the tokens.
    """
    shape = spec.count, spec.most
    errors = {} if spec.donor is None else {ERRORS: ("F32", (spec.count,))}
    return MadeSource(
        kind="transplant",
        title=f"rows by {spec.method} of {files[0][0]}",
        digest=spec.digest,
        spec=spec,
        inputs=(tuple(files),),
        text=None,
        tensors={ROWS: ("I32", shape), WEIGHTS: ("F32", shape), **errors},
    )


def made_rows(made: MadeSource, operand: ex.Expression) -> ex.RowSums:
    """Return the rows that are made of a tensor's.

    Args:
        made: What a job finds out.
        operand: The tensor.
    """
    return ex.RowSums(operand, made.tensor(ROWS), made.tensor(WEIGHTS))
