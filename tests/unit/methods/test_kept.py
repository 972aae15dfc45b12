"""Which elements sparse methods say that they keep: those that their kernels keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.execute import execute
from shardmerge.methods.registry import methods
from shardmerge.methods.task_vectors import keep, kept

SPARSE = [m.name for m in methods() if m.kept]
_SHAPES = [(6, 40), (33,), (3, 8, 5)]
_OPTIONS = {"normalize": False, "rescale": True, "lambda": 1.0, "epsilon": 0.4, "seed": 3}
_OPTIONS |= {"select_topk": 0.4, "r": 0.1, "alpha": 0.2, "stage": ""}


def group(shape: tuple[int, ...], density: float = 0.5, models: int = 3) -> Group:
    """Return inputs whose differences are exact, some of them 0 or equal."""
    random = np.random.default_rng(len(shape))
    tensors = [random.integers(-9, 9, shape) / 8 for _ in range(models + 1)]
    per_input = {
        "weight": (None, *(0.5 + 0.25 * i for i in range(models))),
        "density": (None, *[density] * models),
        "epsilon": (None, *[0.2] * models),
        "gamma": (None, *[0.1] * models),
    }
    names = tuple(f"m{i}" for i in range(models + 1))
    return Group(tensors, 0, _OPTIONS, per_input, "w", names)


def in_torch(found: Group, tensors: Any = None) -> Group:
    values = [torch.from_numpy(t.copy()) for t in (tensors or found.tensors)]
    return Group(values, 0, found.parameters, found.per_input, found.name, found.models)


def test_the_methods_that_keep_only_some() -> None:
    families = ("breadcrumbs", "dare", "della", "ram", "sce", "ties")
    assert [m.name for m in methods() if m.name.startswith(families)] == SPARSE


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(
    ("rule", "kernel"),
    [
        (kept.largest, keep.magnitude),
        (kept.between, keep.between),
        (kept.chance, keep.chance),
        (kept.ranked_chance, keep.ranked_chance),
    ],
)
def test_rules_are_those_of_the_kernels(
    shape: tuple[int, ...], density: float, rule: Any, kernel: Any
) -> None:
    inputs = group(shape, density)
    vector = inputs.tensors[1] - inputs.tensors[0]
    found = in_torch(inputs)

    def masked(group: Group) -> Any:
        masks = yield from kernel(group)
        return lambda x: x.number(masks[1](x, x[1] - x[0])) if 1 in masks else x.full(1.0)

    wanted = execute(masked, replace(found, shape=shape)).reshape(-1) != 0
    assert rule(inputs, 1, vector).reshape(-1).tolist() == wanted.tolist()


@pytest.mark.parametrize("shape", _SHAPES)
def test_ranks_of_numbers_that_use_all_bits(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(len(shape))
    inputs = group(shape)
    values = random.standard_normal(shape).repeat(2, axis=0)[: shape[0]]
    inputs = replace(inputs, tensors=[np.zeros(shape), values, values])
    masks = [
        kept.ranked_chance(one, 1, values * scale)
        for one, scale in ((inputs, 1.0), (inputs, 1 + 2.0**-40))
    ]
    wanted = kept.ranked_chance(inputs, 1, np.argsort(np.abs(values), axis=None, kind="stable")
                                .argsort(kind="stable").reshape(shape).astype(float))  # fmt: skip
    assert masks[0].tolist() == masks[1].tolist()
    assert masks[0].tolist() == wanted.tolist()


@pytest.mark.parametrize("name", [n for n in SPARSE if n != "ramplus_tl"])
def test_what_is_left_out_changes_nothing(name: str) -> None:
    """Where no element of any task vector is kept the result is the base's, elsewhere it is not."""
    (found,) = (m for m in methods() if m.name == name)
    inputs = group((12, 50))
    options = dict(_OPTIONS) | ({"epsilon": 0.9} if name == "ram" else {})
    inputs = Group(inputs.tensors, 0, options, inputs.per_input, "w", inputs.models)
    masks = found.kept(inputs)
    anywhere = np.logical_or.reduce(list(masks.values()))
    result = found.kernel(in_torch(inputs)).numpy()
    assert anywhere.any()
    assert not anywhere.all()
    assert np.array_equal(result[~anywhere], inputs.tensors[0][~anywhere])
    # what is kept of several may cancel
    assert (result[anywhere] != inputs.tensors[0][anywhere]).mean() > 0.9


@pytest.mark.parametrize("name", ["ties", "dare_ties", "della", "breadcrumbs_ties", "sce"])
def test_kept_elements_have_one_sign(name: str) -> None:
    (found,) = (m for m in methods() if m.name == name)
    inputs = group((12, 50))
    masks = found.kept(inputs)
    signs = np.stack([np.sign(inputs.tensors[i] - inputs.tensors[0]) * m for i, m in masks.items()])
    assert (signs.max(axis=0) * signs.min(axis=0) >= 0).all()
