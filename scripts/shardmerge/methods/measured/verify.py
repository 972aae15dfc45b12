"""Tests a solution of RegMean without solving anything.

Of the merged layer ``W`` and vectors of random signs ``w`` and ``x`` the job recorded ``y = W'w``
and ``z = W x`` (``'`` transposes). By definition ``A y = sum(G_i W_i'w)``, where ``G_i`` are the
weighted Gram matrices and ``A`` is their sum. They are read once, and every element of ``y`` is
verified so. ``w'z = y'x`` ties ``z`` to it. ``y`` and ``z`` are compared with the columns and rows
of the written tensor. Cholesky's method solves equations that are within ``n * u`` of the given
ones (Higham 2002, section 10.1), so that the condition of ``A`` does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shardmerge.methods.contract import Group, Recorded, Sampled, TensorReader
from shardmerge.methods.kernels.probes import (
    SIGNS,
    UNIT,
    Balance,
    ProbeError,
    UndecidedProbeError,
    Words,
    WrittenProducts,
    sign_vectors,
)

#: Of the bound on Cholesky's errors.
_SPARE = 8.0


@dataclass
class _Layers:
    """Of each layer ``W_i``: ``W_i'w``, and the norms of its columns."""

    products: list[np.ndarray]
    norms: list[np.ndarray]
    written: WrittenProducts


def verified_regmean(group: Group, recorded: Recorded | None, reader: TensorReader) -> Sampled:
    """Return sampled elements of a merged layer, after what was recorded has been verified.

    Args:
        group: What was merged; its tensors are not looked at.
        recorded: Of the layer, if anything is.
        reader: Reads inputs and the written layer.

    Raises:
        ProbeError: If anything recorded or written is wrong.
        UndecidedProbeError: If it cannot be told, as nothing was recorded.
    """
    if recorded is None:
        raise UndecidedProbeError
    if len(recorded.matrices) != 1:
        raise ProbeError("is not recorded as it must be")
    words = Words([recorded.elements, *recorded.matrices[0]], reader.code)
    rows, columns = group.shape
    elements = words.take(len(reader.places))
    above, beside = words.take(columns), words.take(rows)
    left, right = sign_vectors(group.name, 0, group.shape)
    Balance(words.unit).equal("the merged layer", above * right, beside * left,
                              _SPARE * UNIT * columns * float(np.abs(above).sum()))  # fmt: skip
    layers = _read_layers(group, reader, WrittenProducts(left, right, 1.0, words.unit))
    layers.written.compare(above, beside, reader)
    _test_equations(group, reader, layers, above, words.unit)
    return Sampled(elements, np.abs(elements) * words.unit)


def _read_layers(group: Group, reader: TensorReader, written: WrittenProducts) -> _Layers:
    count, (rows, columns) = len(group.tensors) // 2, group.shape
    products = [np.zeros(columns) for _ in range(count)]
    squares = [np.zeros(columns) for _ in range(count)]
    for first, found in reader.rows(range(count), 0, rows, written=reader.rounding is not None):
        for i, block in enumerate(found[:count]):
            products[i] += written.left[first : first + len(block)] @ block
            squares[i] += np.einsum("ij,ij->j", block, block)
        if len(found) > count:
            written.add(first, found[-1], None)
    return _Layers(products, [np.sqrt(one) for one in squares], written)


def _test_equations(
    group: Group, reader: TensorReader, layers: _Layers, above: np.ndarray, unit: float
) -> None:
    """Test that the recorded product solves the equations."""
    count, (rows, size) = len(group.tensors) // 2, group.shape
    weights, scale = group.per_input["weight"][:count], group.parameters["scale"]
    grams = range(count, 2 * count)
    diagonals = [reader.diagonal(i) * w for i, w in zip(grams, weights, strict=True)]
    live = sum(diagonals) > 0
    diagonals = [np.where(live, d, w) for d, w in zip(diagonals, weights, strict=True)]
    roots = np.sqrt(sum(diagonals))
    apart, bound, errors = np.zeros(size), np.zeros(size), np.zeros(size)
    norm, length, sizes = 0.0, math.sqrt(rows), np.abs(above)
    for first, found in reader.rows(grams, 0, size):
        part = np.arange(first, first + len(found[0]))
        total = 0.0
        for i, block in enumerate(found):
            block *= weights[i] * scale
            block[part - first, part] = diagonals[i][part]
            apart[part] -= block @ layers.products[i]
            total = total + block
            bound[part] += size * UNIT * length * (np.abs(block) @ layers.norms[i])
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
            bound[part] += SIGNS * reader.error(i) * lengths
        # Cholesky's method takes the upper triangle to be the lower one's mirror image
        total = np.tril(total, first)
        total[part - first, part] /= 2
        apart[part] += total @ above
        apart += above[part] @ total
        total = np.abs(total)
        errors[part] += total @ sizes
        errors += sizes[part] @ total
        total /= roots[part, None]
        total /= roots
        norm += 2 * float(np.vdot(total, total))
    bound += 2 * (unit + size * UNIT) * errors
    for i, weight in enumerate(weights):
        change = layers.products[i] - above
        bound += weight * reader.error(count + i) * float(np.linalg.norm(change))
    solution = float(np.linalg.norm(roots * np.sqrt(layers.written.column_squares)))
    if not (solution and math.isfinite(solution)):
        solution = float(np.linalg.norm(roots * above))
    bound += _SPARE * size * UNIT * math.sqrt(norm) * length * solution * roots
    bad = ~(np.abs(apart) <= bound)
    if bad.any():
        place = int(bad.argmax())
        raise ProbeError(
            f"equation {place} of the regression is not solved: {apart[place]:.3g} is left, at "
            f"most {bound[place]:.3g} can be"
        )
