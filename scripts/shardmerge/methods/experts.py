"""Steps of mixtures of experts that no recipe names: noise, and routers from embeddings.

``normal_noise`` and ``uniform_noise`` add random numbers to a tensor, which is 0 for a router.
The group says ``scale``, and with ``seed``, ``stage`` and ``model`` which stream is meant.
``embedding_gate`` gets the embeddings of all prompts' tokens, one row each. ``prompts`` says in
JSON, for each expert and first for its positive, then for its negative prompts, how many tokens
each prompt has.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from shardmerge.base.numerics import FLOAT32, MERGEKIT
from shardmerge.methods.registry import Group, Workspace, step_kernel

if TYPE_CHECKING:
    import torch

_NOISE = Workspace(tensors=30.0)


@step_kernel("normal_noise", FLOAT32, elementwise=True, workspace=_NOISE)
@step_kernel("normal_noise", MERGEKIT, elementwise=True, workspace=_NOISE)
def _normal_noise(group: Group) -> torch.Tensor:
    """Add normal noise of a standard deviation."""
    from shardmerge.methods.kernels.normal import normal_numbers

    tensor = group.tensors[0]
    noise = normal_numbers(_stream(group), group.offset, tensor.numel(), tensor.device)
    return _added(group, noise.mul_(group.parameters["scale"]))


@step_kernel("uniform_noise", FLOAT32, elementwise=True, workspace=_NOISE)
@step_kernel("uniform_noise", MERGEKIT, elementwise=True, workspace=_NOISE)
def _uniform_noise(group: Group) -> torch.Tensor:
    """Add noise that is uniform from -scale to scale."""
    from shardmerge.methods.kernels.rng import uniform

    tensor = group.tensors[0]
    noise = uniform(_stream(group), group.offset, tensor.numel(), tensor.device)
    return _added(group, noise.mul_(2.0).sub_(1.0).mul_(group.parameters["scale"]))


def _stream(group: Group) -> tuple[int, int]:
    from shardmerge.methods.kernels.keys import stream_key

    values = group.parameters
    return stream_key(values["seed"], values["stage"], group.name, values["model"])


def _added(group: Group, noise: torch.Tensor) -> torch.Tensor:
    tensor = group.tensors[0]
    noise = noise.to(tensor.dtype) if tensor.element_size() < 8 else noise
    return tensor + noise.view_as(tensor)


@step_kernel("embedding_gate", FLOAT32, workspace=Workspace(tensors=4.0))
def _embedding_gate(group: Group) -> torch.Tensor:
    """Return for each expert the direction of its prompts' embeddings, [experts, width]."""
    import torch

    rows, place, gates = group.tensors[0].double(), 0, []
    for sides in json.loads(group.parameters["prompts"]):
        directions = []
        for lengths in filter(None, sides):
            total = torch.zeros_like(rows[0])
            for row in rows[place : place + sum(lengths)]:  # in order, on every processor
                total += row
            directions.append(_unit(total))
            place += sum(lengths)
        gates.append(_unit(directions[0] - directions[1] if directions[1:] else directions[0]))
    return torch.stack(gates).to(group.tensors[0].dtype)


def _unit(vector: torch.Tensor) -> torch.Tensor:
    import math

    return vector / max(math.sqrt(math.fsum(x * x for x in vector.tolist())), 1e-8)


@step_kernel("embedding_gate", MERGEKIT, workspace=Workspace(tensors=12.0), promotes=True)
def _mergekit_embedding_gate(group: Group) -> torch.Tensor:
    """Do the same in float32 with mergekit's operations: prompts are padded on the left."""
    import torch

    def unit(vector: torch.Tensor) -> torch.Tensor:
        return vector / vector.norm(dim=-1, keepdim=True).clamp(min=1e-8)

    def direction(part: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        padded = part.new_zeros(len(lengths), max(lengths), part.shape[1])
        for row, prompt in zip(padded, part.split(lengths), strict=True):
            row[max(lengths) - len(prompt) :] = prompt
        return unit(padded.sum(dim=1).sum(dim=0, keepdim=True))

    rows, place, gates = group.tensors[0].float(), 0, []
    for sides in json.loads(group.parameters["prompts"]):
        found = []
        for lengths in filter(None, sides):
            found.append(direction(rows[place : place + sum(lengths)], lengths))
            place += sum(lengths)
        gates.append(unit(found[0] - found[1] if found[1:] else found[0]))
    return torch.cat(gates)
