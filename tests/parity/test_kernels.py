"""The kernels of mergekit numerics against the installed mergekit, compared as integers."""

from __future__ import annotations

import kernel_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmerge.errors import UserError
from shardmerge.methods.kernels.mergekit_task_vectors import generator_seed
from shardmerge.registry import (
    REQUIRED,
    Group,
    kernel_of,
    method,
    methods,
    result_dtype,
)

mergekit = pytest.importorskip("mergekit.merge_methods")
base_types = pytest.importorskip("mergekit.merge_methods.base")

NUMERICS = "mergekit-0.1.5"
OURS_ONLY = {"geometric_task_arithmetic"}
NAMES = [m.name for m in methods() if m.name not in OURS_ONLY]
BLOCKWISE = [name for name in NAMES if kernel_of(name, NUMERICS)[1]]
CODES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def mergekit_result(name: str, group: Group, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return what mergekit makes of a group, its generator seeded as ours is for the tensor."""
    parameters = {k: v for k, v in group.parameters.items() if k not in ("seed", "stage")}
    for parameter in method(name).parameters:
        if parameter.scope == "shared":
            continue
        values = dict(zip(group.models, group.per_input[parameter.name], strict=True))
        if parameter.scope == "model" and group.base is not None:
            del values[group.models[group.base]]
        parameters[parameter.name] = values
    tensors = base_types.TensorGroup.from_tensors(
        list(group.tensors), ids=group.models, base_index=group.base, name=group.name
    )
    torch.manual_seed(generator_seed(group))
    (result,) = mergekit.get(name)((tensors,), parameters=parameters, dtype=dtype)
    return result


def both(name: str, group: Group) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return ours and mergekit's result, None for what is refused."""
    kernel, _ = kernel_of(name, NUMERICS)
    try:
        theirs = mergekit_result(name, group)
    except (ValueError, RuntimeError):
        theirs = None
    try:
        ours = kernel(group)
    except (UserError, RuntimeError):
        ours = None
    return ours, theirs


class TestRegistry:
    def test_every_method_of_mergekit(self) -> None:
        assert sorted(m.spec.name for m in mergekit.registered_methods()) == sorted(NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_parameters_and_inputs(self, name: str) -> None:
        spec, declared = mergekit.get(name).spec, method(name)
        scopes = {"shared": "shared", "input": "input", "non_base": "model"}
        theirs = {
            p.name: (
                scopes[p.scope.value],
                REQUIRED if p.default is base_types.MISSING else p.default,
                float if p.name == "scale" else p.value_type,
            )
            for p in spec.parameters
        }
        ours = {p.name: (p.scope, p.default, p.type) for p in declared.parameters}
        ours.pop("seed", None)
        assert ours == theirs
        contract, inputs = spec.contract, declared.inputs
        assert contract.base.value == inputs.base
        assert (contract.min_inputs, contract.max_inputs) == (inputs.minimum, inputs.maximum)
        assert contract.min_non_base == inputs.minimum_models
        assert contract.max_non_base == inputs.maximum_models


@pytest.mark.parametrize("name", NAMES)
class TestBits:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_no_bit_differs(self, name: str, data: st.DataObject) -> None:
        group = data.draw(cases.groups(name))
        before = [t.clone() for t in group.tensors]
        ours, theirs = both(name, group)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert cases.differing(ours, theirs) == 0
            assert CODES[ours.dtype] == result_dtype(name, NUMERICS, CODES[before[0].dtype])
        for tensor, kept in zip(group.tensors, before, strict=True):
            assert cases.differing(tensor, kept) == 0
