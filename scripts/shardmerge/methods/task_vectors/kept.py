"""Which elements of task vectors have a part in what a sparse method makes: for statistics.

The rules are those of ``keep`` and ``passes``, in float64 numpy, since checks of methods that are
native code run without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from shardmerge.methods.contract import Group

#: Returns which elements of an input's task vector a method keeps before signs are elected.
KeepRule = Callable[[Group, int, np.ndarray], np.ndarray]
#: L1 norms below this are not divided by.
_SMALLEST_NORM = 1e-7


def sparsified(group: Group, rule: KeepRule, *, consensus: bool) -> Mapping[int, np.ndarray]:
    """Return which elements stay: chosen by a rule, not 0, and of the elected sign.

    Args:
        group: With ``weight``, ``density`` and ``rescale``.
        rule: Chooses elements of a task vector.
        consensus: Whether a sign is elected for each element.
    """
    vectors = _vectors(group)
    masks = {
        i: _all(v) if group.per_input["density"][i] >= 1 else rule(group, i, v)
        for i, v in vectors.items()
    }
    factors = {i: group.per_input["weight"][i] for i in vectors}
    if group.parameters["rescale"]:
        factors = {i: f * _rescaling(vectors[i], masks[i]) for i, f in factors.items()}
    parts = {i: np.where(masks[i], v, 0.0) * factors[i] for i, v in vectors.items()}
    return _agreeing(parts) if consensus else {i: part != 0 for i, part in parts.items()}


def largest(group: Group, index: int, vector: np.ndarray) -> np.ndarray:
    """Choose the ``density`` largest magnitudes; of equal ones the first."""
    density = group.per_input["density"][index]
    count = max(1, int(density * vector.size)) if density > 0 else 0
    return _ranked(-np.abs(vector), 0, count)


def between(group: Group, index: int, vector: np.ndarray) -> np.ndarray:
    """Choose ``density`` of the magnitudes, without the ``gamma`` largest and the smallest."""
    count = int(group.per_input["density"][index] * vector.size)
    dropped = int(group.per_input["gamma"][index] * vector.size)
    start = max(0, vector.size - count - dropped)
    return _ranked(np.abs(vector), start, start + count)


def chance(group: Group, index: int, vector: np.ndarray) -> np.ndarray:
    """Choose each element with probability ``density``."""
    drawn = _drawn(group, index, vector.size)
    return (drawn < group.per_input["density"][index] * 2.0**32).reshape(vector.shape)


def ranked_chance(group: Group, index: int, vector: np.ndarray) -> np.ndarray:
    """Choose each element with a probability that grows with its rank within its row."""
    density, epsilon = group.per_input["density"][index], group.per_input["epsilon"][index]
    if density <= 0 or not vector.size:
        return np.zeros(vector.shape, bool)
    length = vector.shape[1] if vector.ndim > 1 else vector.size
    places = np.arange(vector.size).reshape(-1, length, math.prod(vector.shape[2:]))
    places = places.swapaxes(1, 2).reshape(-1, length)
    # by row and rank, where the elements lie
    ranked = _sorted(np.abs(vector).reshape(-1), places)
    relative = np.arange(length) / (length - 1) if length > 1 else 0.5
    bounds = ((density - epsilon) + relative * (2 * epsilon)) * 2.0**32
    mask = np.empty(vector.size, bool)
    mask[ranked] = _drawn(group, index, vector.size)[ranked] < bounds
    return mask.reshape(vector.shape)


def _sorted(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the places of values in the order of these along rows; of equal ones the first first.

    Args:
        values: Not negative, float64 [elements].
        places: int64 [rows, length], each row's ascending.
    """
    bits = values.view(np.int64)
    last = (1 << (len(values) - 1).bit_length()) - 1
    if (bits & last).any():
        order = np.argsort(values[places], axis=1, kind="stable")
        return np.take_along_axis(places, order, axis=1)
    # numbers sort in a tenth of the time that their order takes, and have room for their places
    return np.sort(bits[places] | places, axis=1) & last


def varied(group: Group) -> Mapping[int, np.ndarray]:
    """Return what SCE lets in: of the largest variances between models, and of the elected sign."""
    vectors, share = _vectors(group), group.parameters["select_topk"]
    if not vectors:
        return {}
    variances = np.var(np.stack(list(vectors.values())), axis=0)
    mask = np.ones(variances.shape, bool)
    if share < 1:
        mask = _ranked(-variances, 0, int(np.count_nonzero(variances) * share))
    return _agreeing({i: np.where(mask, v, 0.0) for i, v in vectors.items()})


def changed(group: Group) -> Mapping[int, np.ndarray]:
    """Return what is further from the base than ``epsilon``."""
    epsilon = group.parameters["epsilon"]
    return {i: np.abs(v) > epsilon for i, v in _vectors(group).items()}


def _vectors(group: Group) -> dict[int, np.ndarray]:
    base = group.tensors[group.base]
    return {i: group.tensors[i] - base for i in group.others}


def _all(vector: np.ndarray) -> np.ndarray:
    return np.ones(vector.shape, bool)


def _ranked(keys: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return which elements have ascending ranks from start to stop; equal ones in order."""
    return _lowest(keys, stop) & ~_lowest(keys, start)


def _lowest(keys: np.ndarray, count: int) -> np.ndarray:
    """Return which elements are the lowest, so many; of equal ones the first."""
    if not 0 < count < keys.size:
        return np.full(keys.shape, count > 0)
    # to part them takes a fifth of what sorting takes
    edge = np.partition(keys, count - 1, axis=None)[count - 1]
    mask = keys < edge
    equal = np.flatnonzero(keys == edge)
    mask.reshape(-1)[equal[: count - np.count_nonzero(mask)]] = True
    return mask


def _drawn(group: Group, index: int, count: int) -> np.ndarray:
    """Return a number of 32 bits for each element: a draw is one over 2**32."""
    from shardmerge.methods.kernels.keys import draws
    from shardmerge.methods.task_vectors import keep

    return draws(keep.stream(group, index), 0, count)


def _rescaling(vector: np.ndarray, mask: np.ndarray) -> float:
    before, after = _size(vector), _size(np.where(mask, vector, 0.0))
    return before / after if min(before, after) >= _SMALLEST_NORM else 1.0


def _size(vector: np.ndarray) -> float:
    """Return the sum of magnitudes, added by halves: the same bits on every processor."""
    sums, count = np.abs(vector).reshape(-1), vector.size
    while count > 1:
        half = count // 2
        sums[:half] += sums[count - half : count]
        count -= half
    return float(sums[0]) if count else 0.0


def _agreeing(parts: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return which elements have the sign of the sum; a sum of 0 counts as plus."""
    positive = sum(parts.values()) >= 0
    return {i: np.where(positive, part > 0, part < 0) for i, part in parts.items()}
