"""Which few points a vector is a sum of: orthogonal matching pursuit, and nearest neighbours.

Similarities are looked for in float32, and the best few of them compared in float64. So neither
the order of a library's sums nor the number of threads decides what is chosen, but at exact ties,
where the first point counts.
"""

from __future__ import annotations

import torch

#: Points that are compared in float64 beyond those that are wanted.
_SPARE = 8
#: A residual of this size beside the vector is what rounding leaves.
_NOTHING = 1e-12


def pursue(
    targets: torch.Tensor, points: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return of which points each vector is best made, taken greedily, one after the other.

    The next point is the one with the largest inner product with what is left of the vector;
    then all weights are least squares anew.

    Args:
        targets: [count, width], float32.
        points: [number, width], float32; k at least.
        k: How many points are taken at most.

    Returns:
        Indices of points [count, k], and their weights, float64 [count, k]: 0 of those that were
        not needed.
    """
    count, width = targets.shape
    wanted, device = targets.double(), targets.device
    chosen = torch.zeros((count, k), dtype=torch.long, device=device)
    basis = torch.zeros((count, k, width), dtype=torch.float64, device=device)
    upper = torch.eye(k, dtype=torch.float64, device=device).repeat(count, 1, 1)
    shares = torch.zeros((count, k), dtype=torch.float64, device=device)
    residual, sizes = wanted.clone(), wanted.norm(dim=1)
    for step in range(k):
        best = _most_alike(residual, points, chosen[:, :step])
        chosen[:, step] = best
        atom = points[best].double()
        rest = atom.clone()
        for _ in range(2):  # twice is enough: Giraud and Langou 2005
            inner = torch.bmm(basis[:, :step], rest.unsqueeze(2)).squeeze(2)
            rest -= torch.bmm(inner.unsqueeze(1), basis[:, :step]).squeeze(1)
            upper[:, :step, step] += inner
        length = rest.norm(dim=1)
        # a point in the span of the others, or a vector of which nothing is left, adds nothing
        useful = (length > _NOTHING * atom.norm(dim=1)) & (residual.norm(dim=1) > _NOTHING * sizes)
        upper[:, step, step] = torch.where(useful, length, 1.0)
        upper[:, :step, step] *= useful.unsqueeze(1)
        basis[:, step] = torch.where(
            useful.unsqueeze(1), rest / length.clamp_min(1e-300)[:, None], 0.0
        )
        shares[:, step] = (basis[:, step] * wanted).sum(dim=1)
        residual = residual - shares[:, step, None] * basis[:, step]
    weights = torch.linalg.solve_triangular(upper, shares.unsqueeze(2), upper=True).squeeze(2)
    return chosen, weights


def _most_alike(residual: torch.Tensor, points: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """Return the point with the largest inner product with each vector, in size; [count]."""
    scores = (residual.float() @ points.T).abs_()
    scores.scatter_(1, taken, -1.0)
    few = scores.topk(min(_SPARE, len(points) - taken.shape[1]), dim=1).indices.sort(dim=1).values
    exact = torch.bmm(points[few].double(), residual.unsqueeze(2)).squeeze(2).abs()
    return few.gather(1, _first_largest(exact)).squeeze(1)


def _first_largest(values: torch.Tensor) -> torch.Tensor:
    """Return the index of the first of the largest values in each row, [rows, 1]."""
    largest = values.max(dim=1, keepdim=True).values
    return (values == largest).int().argmax(dim=1, keepdim=True)


def neighbours(
    targets: torch.Tensor, points: torch.Tensor, k: int, weighting: str, *, cosine: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest points of each vector, and weights of which it is about the sum.

    Args:
        targets: [count, width], float32.
        points: [number, width], float32; k at least.
        k: How many are taken.
        weighting: ``distance_proportional`` (by the reciprocal of the distance, or by similarity),
            ``barycentric`` (least squares with weights that add up to 1), or ``least_squares``.
        cosine: Whether near means of a similar direction.

    Returns:
        Indices of points [count, k], and their weights, float64 [count, k].
    """
    chosen, distances = _nearest(targets, points, k, cosine=cosine)
    wanted, near = targets.double(), points[chosen].double()
    if weighting == "distance_proportional":
        weights = 1.0 - distances if cosine else 1.0 / distances.clamp_min(1e-6)
        return chosen, weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-6)
    if weighting == "least_squares":
        return chosen, _least_squares(near.transpose(1, 2), wanted)
    # Lagrange: the inner products of the points, bordered by ones
    count, ones = len(targets), torch.ones((len(targets), k, 1), dtype=torch.float64)
    ones = ones.to(targets.device)
    upper = torch.cat([torch.bmm(near, near.transpose(1, 2)), ones], dim=2)
    lower = torch.cat([ones.transpose(1, 2), ones.new_zeros(count, 1, 1)], dim=2)
    right = torch.cat([torch.bmm(near, wanted.unsqueeze(2)).squeeze(2), ones[:, :1, 0]], dim=1)
    return chosen, _least_squares(torch.cat([upper, lower], dim=1), right)[:, :k]


def _nearest(
    targets: torch.Tensor, points: torch.Tensor, k: int, *, cosine: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the nearest points, the first one first, and their distances."""
    if cosine:
        norms = targets.norm(dim=1, keepdim=True) * points.norm(dim=1)
        rough = -(targets @ points.T) / norms.clamp_min(1e-6)
    else:
        rough = points.square().sum(dim=1) - 2.0 * (targets @ points.T)
    few = rough.topk(min(k + _SPARE, len(points)), dim=1, largest=False).indices
    few = few.sort(dim=1).values
    near, wanted = points[few].double(), targets.double()
    if cosine:
        inner = torch.bmm(near, wanted.unsqueeze(2)).squeeze(2)
        sizes = near.norm(dim=2) * wanted.norm(dim=1, keepdim=True)
        exact = 1.0 - inner / sizes.clamp_min(1e-6)
    else:
        exact = (near - wanted.unsqueeze(1)).norm(dim=2)
    distances, order = exact.sort(dim=1, stable=True)
    return few.gather(1, order[:, :k]), distances[:, :k]


def _least_squares(matrices: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the smallest of the least-squares solutions of each system, [count, unknowns]."""
    return (torch.linalg.pinv(matrices) @ right.unsqueeze(2)).squeeze(2)
