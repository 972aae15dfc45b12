"""The kernels of mergekit numerics against the installed mergekit, compared as integers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import kernel_levels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import NUMERICS, base_types, both, mergekit, mergekit_result

from helpers import kernel_cases as cases
from shardmerge.base.numerics import FLOAT32
from shardmerge.methods.registry import (
    REQUIRED,
    in_mergekit,
    kernel_of,
    method,
    methods,
    result_dtype,
)

NAMES = [m.name for m in methods() if in_mergekit(m.name)]
BLOCKWISE = [name for name in NAMES if kernel_of(name, NUMERICS)[1]]
CODES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


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


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
class TestBits:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_no_bit_differs(self, name: str, data: st.DataObject) -> None:
        group = data.draw(cases.groups(name))
        before = [tensor.clone() for tensor in group.tensors]
        ours, theirs = both(name, group)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert cases.differing(ours, theirs) == 0
            assert CODES[ours.dtype] == result_dtype(name, NUMERICS, CODES[before[0].dtype])
        for tensor, kept in zip(group.tensors, before, strict=True):
            assert cases.differing(tensor, kept) == 0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("count", [1, 3])
    def test_large_with_the_same_threads(
        self, name: str, count: int, dtype: torch.dtype, threads: None
    ) -> None:
        group = cases.ordinary(name, (300, 520), models=3, dtype=dtype, rescale=True)
        torch.set_num_threads(count)
        assert cases.differing(*both(name, group)) == 0

    def test_mixed_dtypes_cast_first(self, name: str) -> None:
        group = cases.ordinary(name, (20, 30), dtype=torch.float32)
        mixed = replace(group, tensors=[group.tensors[0].half(), *group.tensors[1:]])
        cast = replace(group, tensors=[tensor.bfloat16() for tensor in mixed.tensors])
        ours = kernel_of(name, NUMERICS)[0](cast)
        assert cases.differing(ours, mergekit_result(name, mixed, torch.bfloat16)) == 0


class TestLevels:
    """mergekit's bits of some methods are torch's and so the processor's, and ours go along."""

    def check(self, differing: dict[str, int]) -> None:
        assert {name: count for name, count in differing.items() if count} == {}
        assert {name.split()[0] for name in differing} == set(NAMES)

    def test_no_bit_differs_with_vector_code(self, threads: None) -> None:
        torch.set_num_threads(1)
        self.check(kernel_levels.differing())

    def test_no_bit_differs_with_plain_code(self) -> None:
        environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        script = Path(kernel_levels.__file__)
        done = subprocess.run(
            [sys.executable, script], env=environment, stdout=subprocess.PIPE, check=True
        )
        found = json.loads(done.stdout)
        assert found["level"] == "default"
        self.check(found["differing"])


class TestBeyondAMillion:
    @pytest.mark.parametrize("name", ["slerp", "arcee_fusion"])
    def test_chunks_and_samples(self, name: str) -> None:
        group = cases.ordinary(name, (1100, 1024), dtype=torch.float16)
        assert cases.differing(*both(name, group)) == 0


@pytest.mark.parametrize("name", BLOCKWISE)
class TestBlocks:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_blocks_have_the_whole_tensors_bits(self, name: str, data: st.DataObject) -> None:
        group = data.draw(cases.groups(name, models=20))
        edges = data.draw(st.lists(st.integers(0, 10**6), max_size=3))
        kernel, _ = kernel_of(name, NUMERICS)
        parts = [kernel(part) for part in cases.blocks(group, edges)]
        theirs = mergekit_result(name, group)
        assert cases.differing(torch.cat(parts), theirs.reshape(-1)) == 0

    def test_many_models_in_large_blocks(self, name: str) -> None:
        group = cases.ordinary(name, (1003, 301), models=17)
        kernel, _ = kernel_of(name, NUMERICS)
        parts = cases.blocks(group, [1, 7, 1000, 131_072, 131_075, 301_892])
        joined = torch.cat([kernel(part) for part in parts])
        assert cases.differing(joined, mergekit_result(name, group).reshape(-1)) == 0


class TestCorners:
    def test_linear_weights_that_sum_to_zero(self) -> None:
        group = cases.ordinary("linear", (4, 4), weight=(1.0, -1.0))
        ours, theirs = both("linear", group)
        assert not theirs.isfinite().any()
        assert cases.differing(ours, theirs) == 0

    def test_negative_zero_becomes_zero(self) -> None:
        group = cases.ordinary("task_arithmetic", (3, 3))
        zeros = [torch.full_like(tensor, -0.0) for tensor in group.tensors]
        ours, theirs = both("task_arithmetic", replace(group, tensors=zeros))
        assert not ours.signbit().any()
        assert cases.differing(ours, theirs) == 0

    def test_infinity_under_weight_zero_is_nan(self) -> None:
        group = cases.ordinary("task_arithmetic", (2, 2), models=1, weight=(None, 0.0))
        group.tensors[1][0, 0] = torch.inf
        ours, theirs = both("task_arithmetic", group)
        assert ours[0, 0].isnan()
        assert cases.differing(ours, theirs) == 0

    @pytest.mark.parametrize("name", [m.name for m in methods() if m.inputs.base == "required"])
    def test_base_alone(self, name: str) -> None:
        if not in_mergekit(name) or method(name).inputs.minimum > 1:
            pytest.skip("mergekit refuses it")
        group = cases.ordinary(name, (5, 4), models=0)
        assert len(group.tensors) == 1
        ours, theirs = both(name, group)
        assert cases.differing(ours, theirs) == 0
        assert cases.differing(ours, group.tensors[0]) == 0

    def test_random_methods_share_one_generator_a_tensor(self) -> None:
        group = cases.ordinary("dare_linear", (64, 64))
        other = replace(group, name="model.layers.2.self_attn.v_proj.weight")
        kernel, _ = kernel_of("dare_linear", NUMERICS)
        assert cases.differing(kernel(group), kernel(group)) == 0
        assert cases.differing(kernel(group), kernel(other)) > 1000


class TestKeptShares:
    """Over many seeds both random choices keep what they should, ours and mergekit's."""

    @pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
    @pytest.mark.parametrize("numerics", [FLOAT32, NUMERICS, "mergekit itself"])
    def test_share(self, name: str, numerics: str) -> None:
        rows, columns, seeds = 50, 40, 40
        group = cases.ordinary(
            name, (rows, columns), models=1, weight=1.0, density=0.4, epsilon=0.2, rescale=False
        )
        base, model = group.tensors
        kept = torch.zeros(rows, columns, dtype=torch.float64)
        for seed in range(seeds):
            drawn = replace(group, parameters={**group.parameters, "seed": seed})
            if numerics == "mergekit itself":
                result = mergekit_result(name, drawn)
            else:
                result = kernel_of(name, numerics)[0](drawn)
            kept += result != base
        order = (model - base).abs().argsort(dim=1)
        by_rank = kept.gather(1, order).mean(dim=0) / seeds
        expected = torch.full((columns,), 0.4, dtype=torch.float64)
        if name == "della_linear":
            expected = torch.linspace(0.2, 0.6, columns, dtype=torch.float64)
        deviation = (expected * (1 - expected) / (rows * seeds)).sqrt()
        assert ((by_rank - expected) / deviation).abs().max() < 5
