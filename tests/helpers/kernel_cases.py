"""Inputs for tests of merge kernels: groups, their parameters, the oracle's call."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st

from shardmerge.methods.blending import mergekit
from shardmerge.methods.registry import Group, MergeMethod, method

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = ((1,), (7,), (130,), (1, 1), (3, 5), (17, 33), (40, 64), (6, 5, 3, 2), (2, 3, 1, 4))


def count_inputs(declared: MergeMethod, models: int) -> tuple[int, bool]:
    """Return how many inputs a method can take, near a wish, and whether the first is the base."""
    inputs, base = declared.inputs, declared.inputs.base == "required"
    least = max(inputs.minimum, (inputs.minimum_models or 0) + base)
    most = inputs.maximum or 99
    if inputs.maximum_models is not None:
        most = min(most, inputs.maximum_models + base)
    return min(max(models + base, least), most), base


def tensors(
    count: int, shape: tuple[int, ...], kind: str, seed: int, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return tensors that differ as a kind says, the first like a base model."""
    random = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64) * scale

    base = normal(0.05)
    made = {
        "tuned": lambda: base + normal(0.002),
        "apart": lambda: normal(1.0),
        "equal": lambda: base,
        "zero": lambda: torch.zeros(shape, dtype=torch.float64),
        "sparse": lambda: base + normal(0.01) * (normal(1.0) > 0.8),
        "opposite": lambda: -base,
        "negative zero": lambda: -base.abs() * 0.0,
    }
    rest = [made[kind]() for _ in range(count - 1)]
    return [t.to(dtype) for t in [base, *rest]]


KINDS = ("tuned", "apart", "equal", "zero", "sparse", "opposite", "negative zero")


@st.composite
def groups(
    draw: st.DrawFn,
    name: str,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    kinds: tuple[str, ...] = KINDS,
    models: int = 6,
) -> Group:
    """Draw what a kernel may be given for a method."""
    declared = method(name)
    count, has_base = count_inputs(declared, draw(st.integers(1, models)))
    if declared.inputs.base == "optional" and draw(st.booleans()):
        count, has_base = count + 1, True
    made = tensors(
        count,
        draw(st.sampled_from(SHAPES)),
        draw(st.sampled_from(kinds)),
        draw(st.integers(0, 2**32)),
        draw(st.sampled_from(dtypes)),
    )
    base = draw(st.integers(0, count - 1)) if has_base else None
    if base:
        made.insert(base, made.pop(0))
    shared, per_input = {}, {}
    for parameter in declared.parameters:
        value = st.sampled_from(parameter.samples)
        if parameter.scope == "shared":
            shared[parameter.name] = draw(value)
            continue
        values = [draw(value) for _ in made]
        if parameter.scope == "model" and base is not None:
            values[base] = None
        per_input[parameter.name] = tuple(values)
    return Group(
        tensors=made,
        base=base,
        parameters=shared,
        per_input=per_input,
        name="model.layers.0.mlp.up_proj.weight",
        models=tuple(f"model-{i}" for i in range(count)),
    )


def ordinary(
    name: str,
    shape: tuple[int, ...],
    models: int = 2,
    dtype: torch.dtype = torch.float32,
    **values: object,
) -> Group:
    """Return a group of fine-tunes of one base, with ordinary values for what is not given."""
    declared = method(name)
    count, has_base = count_inputs(declared, models)
    shared, per_input = {}, {}
    for parameter in declared.parameters:
        value = values.get(parameter.name, parameter.samples[0])
        if parameter.scope == "shared":
            shared[parameter.name] = value
            continue
        each = list(value) if isinstance(value, tuple) else [value] * count
        if has_base and parameter.scope == "model":
            each = [None, *each[-(count - 1) :]] if count > 1 else [None]
        per_input[parameter.name] = tuple(each)
    return Group(
        tensors=tensors(count, shape, "tuned", 7, dtype),
        base=0 if has_base else None,
        parameters=shared,
        per_input=per_input,
        name="model.layers.1.self_attn.v_proj.weight",
        models=tuple(f"model-{i}" for i in range(count)),
    )


def blocks(group: Group, edges: list[int]) -> list[Group]:
    """Return the group's flattened tensors cut at the given elements."""
    total = group.tensors[0].numel()
    cuts = sorted({0, total, *(edge % (total + 1) for edge in edges)})
    return [
        replace(
            group,
            tensors=[t.reshape(-1)[a:b].clone() for t in group.tensors],
            offset=a,
            total=total,
        )
        for a, b in itertools.pairwise(cuts)
    ]


def differing(a: torch.Tensor, b: torch.Tensor) -> int:
    """Return how many elements differ in their bits; any two NaNs are the same."""
    assert a.dtype == b.dtype and a.shape == b.shape, (a.dtype, b.dtype, a.shape, b.shape)
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    same = (a.contiguous().view(bits) == b.contiguous().view(bits)) | (a.isnan() & b.isnan())
    return math.prod(a.shape) - int(same.sum())


def divergence_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that is told how many threads torch has whenever it makes divergences."""
    threads, divergences = [], mergekit.divergences

    def noted(*tensors: torch.Tensor) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return divergences(*tensors)

    monkeypatch.setattr(mergekit, "divergences", noted)
    return threads
