"""From what a job that makes rows of tokens is told to what it finds out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.algebra.transplant import TransplantSpec
from shardmerge.sources.tokenizer.prompts import tokens_of_texts

if TYPE_CHECKING:
    from shardmerge.engine.transplant import RowTerms


def make_terms(
    spec: TransplantSpec, files: Sequence[Path], *, threads: int = 1, **how: Any
) -> RowTerms:
    """Return of which rows, and with what weights, the rows of a specification's tokens are made.

    Args:
        spec: The specification.
        files: The file of the donor's embedding, or those of a tokenizer, in its order.
        threads: Of torch.
        how: Other arguments of ``engine.transplant.from_donor``.

    Raises:
        UserError: If a file cannot be read, or is not as the plan has it.
    """
    from shardmerge.engine.transplant import from_donor, from_parts

    if spec.donor is None:
        return from_parts(spec, _parts(spec, files))
    return from_donor(spec, files, threads=threads, **how)


def _parts(spec: TransplantSpec, files: Sequence[Path]) -> list[tuple[int, ...]]:
    """Return the parts that a tokenizer splits each token of a specification into."""
    places = {name: path for (name, _), path in zip(spec.tokenizer, files, strict=True)}
    where = str(files[0].parent)
    return tokens_of_texts(spec.texts, places, lambda name: places[name].read_bytes(), where)
