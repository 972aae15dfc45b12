"""Rows that are drawn at random around the mean of a model's rows, with their covariance.

Of ``m`` rows ``x_j``, drawn with repeats, a new one is ``mean + sum w_j x_j`` with
``w_j = (g_j - mean(g)) / sqrt(m - 1)`` and normal ``g_j``. The weights add up to 0, and their
squares to 1 in the mean, so that mean and covariance are those of all rows, and no covariance
matrix is needed. What such rows are for: Hewitt 2021, "Initializing New Word Embeddings for
Pretrained Language Models", https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
"""

from __future__ import annotations

import math

import torch

from shardmerge.algebra.transplant import TransplantSpec
from shardmerge.engine.transplant import RowTerms, put_terms
from shardmerge.methods.kernels.keys import Key, stream_key
from shardmerge.methods.kernels.normal import normal_numbers
from shardmerge.methods.kernels.rng import uniform

#: Terms that are drawn at a time.
_AT_ONCE = 1 << 16


def by_chance(spec: TransplantSpec) -> RowTerms:
    """Return of which of a model's rows new ones are drawn, less the mean, which comes on top.

    The bits follow from the specification alone, on every processor.

    Args:
        spec: How many rows, of how many each, and of which stream of random numbers.
    """
    terms = RowTerms.empty(spec)
    which, how_much = (_key(spec, part) for part in ("rows", "weights"))
    step = max(_AT_ONCE // spec.most, 1)
    for first in range(0, spec.count, step):
        these = slice(first, min(first + step, spec.count))
        start, shape = first * spec.most, (these.stop - first, spec.most)
        rows = (uniform(which, start, math.prod(shape)) * spec.limit).to(torch.int32).view(shape)
        drawn = normal_numbers(how_much, start, math.prod(shape)).view(shape)
        put_terms(terms, these, rows, _weights(drawn) * spec.scale)
    return terms


def _weights(drawn: torch.Tensor) -> torch.Tensor:
    """Return weights that add up to 0; their sum is made number after number."""
    count = drawn.shape[1]
    total = torch.zeros_like(drawn[:, 0])
    for column in drawn.unbind(1):
        total = total + column
    return (drawn - (total / count).unsqueeze(1)) / math.sqrt(count - 1)


def _key(spec: TransplantSpec, part: str) -> Key:
    stage, kind, model = spec.stream
    return stream_key(spec.seed, stage, f"{part} of {kind}", model)
