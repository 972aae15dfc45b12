"""RegMean, and MetaGPT's coefficients: the float32 kernels of their steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from shardmerge.base.errors import UserError
from shardmerge.methods.contract import Group, Recorded
from shardmerge.methods.kernels.probes import sign_vectors, to_words

_UNIT = 2.0**-53
#: Of the bound of a solution's errors.
_SPARE = 8.0


def regmean(group: Group, error: float | None = None) -> tuple[torch.Tensor, float]:
    """Return the layer whose outputs are nearest to those of all layers, and a bound.

    Args:
        group: Weights [outputs, inputs], then Gram matrices [inputs, inputs] in the same order;
            ``weight`` and ``scale``.
        error: Bound on the distance (Frobenius norm) of each tensor from the one that is meant;
            None if no bound is wanted.

    Returns:
        The weight, and a bound on an element's distance from another library's before rounding.
    """
    found, total, roots = _solution(group)
    bound = math.inf if error is None else _bound(group, total, roots, found, error)
    return _rounded(group, found, roots), bound


def probed_regmean(group: Group, places: np.ndarray) -> tuple[torch.Tensor, Recorded]:
    """Return the same layer, and what is recorded of it: products with vectors of random signs.

    Args:
        group: As above.
        places: Indices of the sampled elements, ascending.
    """
    found, _, roots = _solution(group)
    result = _rounded(group, found, roots)  # which divides by the roots
    columns, rows = found.shape
    left, right = (
        torch.from_numpy(one).to(found.device)
        for one in sign_vectors(group.name, 0, (rows, columns))
    )
    chosen = torch.from_numpy(places).to(found.device)
    elements = found[chosen % columns, chosen // columns]
    code = "F64" if result.dtype == torch.float64 else "F32"
    texts = [to_words(v.cpu().numpy(), code) for v in (elements, found @ left, found.t() @ right)]
    return result, Recorded(texts[0], [texts[1:]])


def _rounded(group: Group, found: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
    like = group.tensors[0]
    return found.div_(roots[:, None]).t().to(like.dtype, copy=True).contiguous()


def _solution(group: Group) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the scaled solution, the scaled equations, and the roots that they are scaled by.

    The equations are scaled so that their diagonal is 1: features differ by orders of magnitude.
    """
    count = len(group.tensors) // 2
    weights = group.per_input["weight"][:count]
    layers, grams = group.tensors[:count], group.tensors[count:]
    live = sum((g.diagonal().double() * w for g, w in zip(grams, weights, strict=True))) > 0
    total = right = None
    for layer, gram, weight in zip(layers, grams, weights, strict=True):
        gram = _scaled(gram, weight, group.parameters["scale"], live)
        product = gram @ layer.double().t()
        total = gram if total is None else total.add_(gram)
        right = product if right is None else right.add_(product)
    roots = total.diagonal().sqrt()
    total.div_(roots[:, None]).div_(roots)
    return _solved(total, right / roots[:, None]), total, roots


def _scaled(gram: torch.Tensor, weight: float, scale: float, live: torch.Tensor) -> torch.Tensor:
    """Return a Gram matrix in float64, scaled, with a weight as the diagonal of dead features."""
    diagonal = gram.diagonal().double() * weight
    made = gram.double() * (weight * scale)
    made.diagonal().copy_(torch.where(live, diagonal, weight))
    return made


def _solved(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not bool(factor.isfinite().all()):
        raise UserError(
            f"the Gram matrices of a layer with {len(matrix)} inputs have no inverse",
            hint="Write a smaller `scale`, such as 0.9, or let the models read more text.",
        )
    return torch.cholesky_solve(right, factor)


def _bound(
    group: Group, matrix: torch.Tensor, roots: torch.Tensor, found: torch.Tensor, error: float
) -> float:
    """Return how far an element of another library's solution may be.

    Cholesky's method solves equations that are within ``n * u`` of the given ones (Higham 2002,
    section 10.1); the smallest eigenvalue says what becomes of that. Small matrices alone are
    checked, so that finding it is cheap.
    """
    count = len(group.tensors) // 2
    least = float(torch.linalg.eigvalsh(matrix)[0])
    if least <= 0:
        return math.inf
    size = len(matrix)
    largest = float(found.norm(dim=0).max()) if found.numel() else 0.0
    change = _SPARE * size * _UNIT * float(matrix.norm()) * largest
    if error:
        norms = [float(t.double().norm()) for t in group.tensors]
        weights = group.per_input["weight"][:count]
        small = float(roots.min())
        for weight, layer, gram in zip(weights, norms[:count], norms[count:], strict=True):
            change += weight * error * ((layer + gram) / small + largest / small**2)
    # the right side is a sum of products, rounded as such
    change += _SPARE * size * _UNIT * _largest_column(group, roots)
    return change / least / float(roots.min())


def _largest_column(group: Group, roots: torch.Tensor) -> float:
    count = len(group.tensors) // 2
    total = None
    for i in range(count):
        gram = group.tensors[count + i].double().abs() * group.per_input["weight"][i]
        part = gram @ group.tensors[i].double().abs().t()
        total = part if total is None else total.add_(part)
    total = total / roots[:, None]
    return float(total.norm(dim=0).max()) if total.numel() else 0.0


def share(group: Group) -> torch.Tensor:
    """Return a row of a model's coefficient: the square of its norm by the sum of all."""
    found = shares_of_squares([float(tensor) for tensor in group.tensors])[
        group.parameters["model"]
    ]
    like = group.tensors[0]
    row = torch.full((group.parameters["width"],), found, dtype=like.dtype, device=like.device)
    return row.mul_(group.parameters["lambda"]).view(1, -1)


def shares_of_squares(norms: Sequence[float]) -> list[float]:
    """Return the squares of norms, divided by their sum; equal shares if all are 0."""
    largest = max(norms)
    if not largest:
        return [1 / len(norms)] * len(norms)
    squares = [(norm / largest) ** 2 for norm in norms]
    return [square / math.fsum(squares) for square in squares]
