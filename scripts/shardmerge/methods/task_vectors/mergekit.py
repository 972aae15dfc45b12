"""mergekit 0.1.5's merges of task vectors, bit by bit.

Each step is done by the same torch operation on the same shape and dtype, since a reduction's
order, an unstable sort's ties and a generator's use depend on them. Full reductions of a whole
tensor also depend on the number of threads: equal bits need as many as mergekit had.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.task_vectors.keep import generator_seed, kept_between, kept_magnitudes

#: Returns a task vector with what is not kept set to 0: (vector, input's index) -> vector.
Sparsify = Callable[[torch.Tensor, int], torch.Tensor]

#: A multiple of the elements that torch adds up at a time.
_ALIGNED = 128


def generator(group: Group) -> torch.Generator:
    """Return the generator that the random methods draw from for one tensor.

    mergekit draws from one generator for the whole run, in the order in which its scheduler
    happens to reach the tensors; what a tensor gets depends on all that were built before it,
    and no shard could be built alone. Here each tensor has a generator of its own, whose draws
    are used in mergekit's order: same bits if mergekit's is seeded so before the tensor.
    """
    return torch.Generator().manual_seed(generator_seed(group))


def merge_task_vectors(group: Group, sparsify: Sparsify | None, consensus: bool) -> torch.Tensor:
    """Add sparsified, weighted task vectors to the base, every step rounded to its dtype."""
    base, indices = group.tensors[group.base], group.others
    if not indices:
        return base.clone()
    given = [group.per_input["weight"][i] for i in indices]
    weights = base.new_tensor(given).view(-1, *(1,) * base.dim())
    vectors = base.new_empty((len(indices), *base.shape))
    for position, index in enumerate(indices):
        vector = torch.sub(group.tensors[index], base, out=vectors[position])
        if sparsify:
            vector.copy_(sparsify(vector, index))
    if set(given) != {1.0}:
        vectors *= weights
    if consensus:
        agrees = _sign_agrees(vectors, group.parameters["int8_mask"])
        mixed = _sum(vectors * agrees)
        if group.parameters["normalize"]:
            divisor = (weights * agrees).sum(dim=0)
            divisor[divisor == 0] = 1
            mixed /= divisor
    else:
        mixed = sum_models(vectors, group)
        if group.parameters["normalize"]:
            divisor = weights.sum(dim=0)
            divisor[divisor.abs() < 1e-8] = 1
            mixed /= divisor
    if group.parameters["lambda"] != 1:
        mixed *= group.parameters["lambda"]
    return base + mixed


def sum_models(stack: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the sum over the first dimension, with the bits that the whole tensor's has.

    From five terms on torch adds the last elements of a tensor, which fill no vector register,
    in another order than the rest. So a block is given what lies around it, as zeros.

    Args:
        stack: [models, ...]
        group: Says where in the tensor the block lies.
    """
    count = stack[0].numel()
    rest = group.total - group.offset - count
    if len(stack) < 5 or (group.offset == 0 and rest <= 0):
        return _sum(stack)
    before = group.offset if group.offset < 2 * _ALIGNED else _ALIGNED + group.offset % _ALIGNED
    after = rest if rest < _ALIGNED else _ALIGNED + -(before + count) % _ALIGNED
    padded = torch.nn.functional.pad(stack.reshape(len(stack), -1), (before, after))
    return padded.sum(dim=0)[before : before + count].view(stack.shape[1:])


def _sum(stack: torch.Tensor) -> torch.Tensor:
    """Return the sum over the first dimension.

    Of a few 16-bit terms torch makes the same sum, in float32, in this order, rounded once from
    +0, but six times as slowly.
    """
    if stack.element_size() != 2 or len(stack) > 4:
        return stack.sum(dim=0)
    total = stack[0].float().add_(0.0)
    for term in stack[1:]:
        total += term
    return total.to(stack.dtype)


def magnitude(group: Group) -> Sparsify:
    """Keep the largest magnitudes."""

    def sparsify(vector: torch.Tensor, index: int) -> torch.Tensor:
        density = group.per_input["density"][index]
        if density >= 1:
            return vector
        if density <= 0 or not vector.numel():
            return torch.zeros_like(vector)
        order = torch.argsort(vector.abs().view(-1).float(), descending=True)
        return _masked(vector, order[slice(*kept_magnitudes(vector.numel(), density))], group)

    return sparsify


def between(group: Group) -> Sparsify:
    """Drop the largest and the smallest magnitudes."""

    def sparsify(vector: torch.Tensor, index: int) -> torch.Tensor:
        density, gamma = (group.per_input[name][index] for name in ("density", "gamma"))
        if density >= 1:
            return vector
        order = torch.sort(vector.abs().view(-1).float()).indices
        return _masked(vector, order[slice(*kept_between(vector.numel(), density, gamma))], group)

    return sparsify


def chance(group: Group) -> Sparsify:
    """Keep each element with one probability."""
    random = generator(group)

    def sparsify(vector: torch.Tensor, index: int) -> torch.Tensor:
        density, wide = group.per_input["density"][index], _random_dtype(vector)
        if density >= 1:
            return vector
        probabilities = torch.full_like(vector, density, dtype=wide)
        mask = torch.bernoulli(probabilities, generator=random)
        return _rescaled(vector.to(wide), mask, group).to(vector.dtype)

    return sparsify


def ranked_chance(group: Group) -> Sparsify:
    """Keep each element with a probability that grows with its rank in its row."""
    random = generator(group)

    def sparsify(vector: torch.Tensor, index: int) -> torch.Tensor:
        density, epsilon = (group.per_input[name][index] for name in ("density", "epsilon"))
        if density >= 1:
            return vector
        if density <= 0:
            return torch.zeros_like(vector)
        wide = _random_dtype(vector)
        rows = vector if vector.dim() > 1 else vector.unsqueeze(0)
        ranks = rows.abs().argsort(dim=1).argsort(dim=1).to(wide) + 1
        least, most = ranks.amin(dim=1, keepdim=True), ranks.amax(dim=1, keepdim=True)
        relative = ((ranks - least) / (most - least)).clamp(0, 1)
        probabilities = (density - epsilon) + relative * 2 * epsilon
        mask = torch.bernoulli(probabilities, generator=random).to(wide)
        return _rescaled(rows.to(wide), mask, group).to(vector.dtype).view(vector.shape)

    return sparsify


def sce(group: Group) -> torch.Tensor:
    """Select by variance, weigh by energy, erase minority signs, in the inputs' dtype."""
    base, indices = group.tensors[group.base], group.others
    if not indices:
        return base.clone()
    vectors = torch.stack([group.tensors[i] - base for i in indices])
    if group.parameters["select_topk"] < 1:
        vectors = vectors * _most_varied(vectors, group.parameters["select_topk"])
    agrees = _sign_agrees(vectors, group.parameters["int8_mask"])
    energies = vectors.square().view(len(vectors), -1).mean(dim=1)
    total = energies.sum().item()
    alike = torch.ones_like(energies) / len(energies)
    weights = alike if abs(total) < 1e-6 else energies / total
    weights = weights.view(-1, *(1,) * base.dim()) * agrees
    mixed = (vectors * weights).sum(dim=0)
    return base + mixed / weights.sum(dim=0).clamp(min=1e-6)


def reinforced(group: Group, rescale_unique: bool) -> torch.Tensor:
    """Keep unique changes (amplified if asked, which promotes to float32), average shared ones."""
    base, indices, epsilon = group.tensors[group.base], group.others, group.parameters["epsilon"]
    if not indices:
        return base.clone()
    vectors = torch.stack([(group.tensors[i] - base).view(-1) for i in indices])
    changed = vectors.abs() > epsilon
    count = changed.sum(dim=0, keepdim=True)
    unique, shared = count == 1, count > 1
    kept = vectors * changed
    alone = kept * unique
    if rescale_unique:
        ratio = (changed & shared).sum(dim=1) / (changed & unique).sum(dim=1).clamp(min=epsilon)
        factor = 1 + group.parameters["r"] * ratio.clamp(min=0, max=group.parameters["alpha"])
        alone = alone * factor.unsqueeze(-1)
    mixed = alone + kept * shared / count.clamp(min=1)
    return base + sum_models(mixed, group).view_as(base)


def _sign_agrees(vectors: torch.Tensor, int8_mask: bool) -> torch.Tensor:
    dtype = torch.int8 if int8_mask else vectors.dtype
    elected = (_sum(vectors) >= 0).to(dtype) * 2 - 1
    return vectors.sign().to(dtype) == elected


def _most_varied(vectors: torch.Tensor, share: float) -> torch.Tensor:
    mask = torch.zeros_like(vectors[0])
    if share > 0:
        variance = torch.var(vectors, dim=0, unbiased=False)
        if kept := int(int(torch.count_nonzero(variance)) * share):
            mask.view(-1)[torch.topk(variance.abs().view(-1), k=kept).indices] = 1
    return mask


def _masked(vector: torch.Tensor, kept: torch.Tensor, group: Group) -> torch.Tensor:
    mask = vector.new_zeros(vector.numel())
    mask[kept] = 1
    return _rescaled(vector, mask.view_as(vector), group)


def _rescaled(vector: torch.Tensor, mask: torch.Tensor, group: Group) -> torch.Tensor:
    masked = vector * mask
    if not group.parameters["rescale"]:
        return masked
    before, after = vector.abs().sum(), masked.abs().sum()
    return masked if before < 1e-7 or after < 1e-7 else masked * (before / after)


def _random_dtype(vector: torch.Tensor) -> torch.dtype:
    """Return the dtype in which mergekit draws on a CPU."""
    return vector.dtype if vector.dtype == torch.bfloat16 else torch.float32
