"""Verifies what was recorded of a tensor: one pass over its sources and what was written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from shardmerge.methods.contract import Group, Recorded, Sampled, TensorReader
from shardmerge.methods.kernels.probes import (
    UNIT,
    ProbeError,
    UndecidedProbeError,
    Words,
    WrittenProducts,
    sign_vectors,
)
from shardmerge.methods.spectral.equations import (
    Factored,
    MatrixProbe,
    MatrixProducts,
    check_merged,
)
from shardmerge.methods.spectral.rules import MatrixRule


def verified(
    group: Group, recorded: Recorded | None, reader: TensorReader, rule: MatrixRule, *, mean: bool
) -> Sampled:
    """Return sampled elements of a merged tensor, after what was recorded has been verified.

    Args:
        group: What was merged; its tensors are not looked at.
        recorded: Of the tensor, if anything is.
        reader: Reads inputs and the written tensor.
        rule: Of the method.
        mean: Whether what is not decomposed gets the mean of the task vectors, not their sum.

    Raises:
        ProbeError: If anything recorded or written is wrong.
        UndecidedProbeError: If it cannot be told, as nothing was recorded.
    """
    plain = _plain(group, reader, mean)
    if not (group.parameters["decompose"] and group.others and len(group.shape) in (2, 3)):
        return plain
    rows, columns = group.shape[-2:]
    if rule.divides and min(rows, columns) < len(group.others):
        return plain
    if recorded is None:
        raise UndecidedProbeError
    stack = group.count // (rows * columns)
    if len(recorded.matrices) != stack:
        raise ProbeError("is not recorded as it must be")
    elements = Words([recorded.elements], reader.code)
    made = elements.take(len(reader.places), finite=False)
    base, factor = reader.sample(group.base), group.parameters["lambda"]
    value, error = base.value + factor * made, base.error + np.abs(factor * made) * elements.unit
    for number, texts in enumerate(recorded.matrices):
        if not _verify(group, texts, reader, rule, number):
            inside = reader.places // (rows * columns) == number
            value[inside], error[inside] = plain.value[inside], plain.error[inside]
    return Sampled(value, error)


def _plain(group: Group, reader: TensorReader, mean: bool) -> Sampled:
    """Return what is made of elements that are not decomposed."""
    base = reader.sample(group.base)
    count = max(len(group.others), 1) if mean else 1
    factor = group.parameters["lambda"] / count
    value, error, size = base.value.copy(), base.error.copy(), np.abs(base.value)
    for i in group.others:
        one, weight = reader.sample(i), group.per_input["weight"][i] * factor
        value += weight * (one.value - base.value)
        error += abs(weight) * (one.error + base.error)
        size += abs(weight) * (np.abs(one.value) + np.abs(base.value))
    return Sampled(value, error + (len(group.others) + 4) * UNIT * size, plain=True)


def _verify(
    group: Group, texts: Sequence[str], reader: TensorReader, rule: MatrixRule, number: int
) -> bool:
    """Verify one matrix; return whether it was decomposed, as one with infinite values is not."""
    words = Words(texts, reader.code)
    rows, columns = shape = group.shape[-2:]
    left, right = sign_vectors(group.name, number, shape)
    probe = MatrixProbe(group, shape, words, left, right)
    if rule.projects:
        # nothing is recorded of what is not finite
        probe.projected = words.take(rows) if texts else np.zeros(rows)
    written = WrittenProducts(left, right, group.parameters["lambda"], words.unit)
    if not _add_up(probe, reader, number, written):
        return False
    candidates = list(rule.factors(probe))
    above, beside = words.take(columns), words.take(rows)
    _any(lambda made: check_merged(probe, made, above, beside), candidates)
    written.compare(above, beside, reader, reader.error(group.base))
    return True


def _add_up(
    probe: MatrixProbe, reader: TensorReader, number: int, written: WrittenProducts
) -> bool:
    """Find the products of the inputs and of the written matrix; return whether all are finite."""
    group, (rows, columns) = probe.group, probe.shape
    vectors = np.stack([v for v in (probe.left, probe.projected) if v is not None])

    def empty() -> MatrixProducts:
        return MatrixProducts(np.zeros((len(vectors), columns)), np.zeros(rows))

    probe.parts, probe.total = [empty() for _ in group.others], empty()
    inputs, begin = range(len(group.tensors)), number * rows
    weights = [group.per_input["weight"][i] for i in group.others]
    each = list(zip(probe.parts, group.others, weights, strict=True))
    blocks = reader.rows(inputs, begin, begin + rows, written=reader.rounding is not None)
    for first, found in blocks:
        base, total = found[group.base], 0.0
        if not all(np.isfinite(one).all() for one in found[: len(inputs)]):
            return False
        for part, i, weight in each:
            change = found[i] - base
            change *= weight
            part.add(vectors, probe.right, first - begin, change)
            total = total + change
        probe.total.add(vectors, probe.right, first - begin, total)
        if len(found) > len(inputs):
            written.add(first - begin, found[-1], base)
    for part, i, weight in each:
        part.error = abs(weight) * (reader.error(i) + reader.error(group.base))
    probe.total.error = math.fsum(part.error for part in probe.parts)
    return True


def _any(test: Callable[[Factored], None], candidates: Sequence[Factored]) -> None:
    """Test candidates until one is right.

    Raises:
        ProbeError: Of the first, if none is.
    """
    errors = []
    for one in candidates:
        try:
            return test(one)
        except ProbeError as error:
            errors.append(error)
    raise errors[0]
