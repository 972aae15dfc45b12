"""Checks of large tensors whose bits a library decides, by recorded products with random vectors.

Every tensor here is large: the limit is lowered, so that tests stay quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import check_shard as command
from helpers import engine_cases as cases
from helpers.built_model import build_model, verify
from helpers.library_cases import decomposed, measured, random
from helpers.told_shard import Told
from shardmerge.algebra import expression as ex
from shardmerge.algebra import samples
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.files import write_json
from shardmerge.base.numerics import FLOAT32
from shardmerge.base.safetensors import read_header
from shardmerge.check import error_bounds, kernels, memory
from shardmerge.check.shard import check_shard
from shardmerge.engine.memory import STREAMING_BYTES
from shardmerge.engine.tasks import make_task
from shardmerge.methods.contract import Recorded
from shardmerge.methods.kernels.probes import Words, to_words
from shardmerge.methods.measured import kernels as measured_kernels
from shardmerge.methods.registry import methods, probing_of
from shardmerge.methods.spectral import decompose
from shardmerge.methods.spectral import kernels as spectral_kernels
from shardmerge.plan.paths import record_path
from shardmerge.plan.records import load_record

SPECTRAL = [m.name for m in methods() if m.bounds]
ALL = [*SPECTRAL, "regmean_solution"]
_TSV = """\
name: merged
merge_method: tsv_m
base_model: lab/base
models:
  - model: lab/tuned
  - model: lab/long
dtype: bfloat16
"""
#: More elements than a sample has; neither is a multiple of a sample's runs.
SHAPE = (160, 131)


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (samples, kernels, memory):
        monkeypatch.setattr(module, "WHOLE", 100)
    monkeypatch.setattr(memory, "STRIPE", 1 << 13)


def made(
    name: str, folder: Path, out: str = "F32", shape: tuple[int, ...] = SHAPE, **parameters: Any
) -> tuple[cases.Models, ShardSpec]:
    if name == "regmean_solution":
        return measured(name, folder, torch.float16, out, shape, **parameters)
    return decomposed(name, folder, "F16", out, None, shape, **parameters)


def check(models: cases.Models, spec: ShardSpec, probes: Any) -> dict[str, Any]:
    return check_shard(
        spec, models.folder / "out.safetensors", models.paths, (), Told(probes=probes or {})
    )  # fmt: skip


def built_and_checked(
    models: cases.Models, spec: ShardSpec, asked: ShardSpec | None = None
) -> dict[str, Any]:
    """Build a shard and check it, perhaps for another specification."""
    return check(models, asked or spec, models.build(spec).probes)


def with_parameters(spec: ShardSpec, **parameters: Any) -> ShardSpec:
    (tensor,) = spec.tensors
    values = dict(tensor.expression.parameters) | parameters
    call = replace(tensor.expression, parameters=tuple(sorted(values.items())))
    return replace(spec, tensors=(replace(tensor, expression=call),))


def alter(models: cases.Models, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change the tensor of the shard."""
    path = models.folder / "out.safetensors"
    data, entry = bytearray(path.read_bytes()), read_header(path).tensors["w"]
    dtype = next(k for k, v in cases.CODES.items() if v == entry.dtype)
    count = (entry.end - entry.begin) // dtype.itemsize
    found = torch.frombuffer(data, dtype=dtype, count=count, offset=entry.begin).view(entry.shape)
    result = change(found)
    if result.shape == found.shape:  # else it was changed in place
        found.copy_(result)
    path.write_bytes(data)


def swapped(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix with two right singular vectors in each other's place."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left * values) @ right[[1, 0, *range(2, len(right))]]


def unsampled(shape: tuple[int, ...] = SHAPE) -> int:
    """Return an element that is not in the sample."""
    count = shape[0] * shape[1]
    return next(iter(set(range(count)) - set(samples.positions(samples.sample_runs("w", count)))))


@pytest.mark.parametrize("name", ALL)
class TestRightShards:
    @pytest.mark.parametrize("out", ["F32", "BF16", "F16", "F64"])
    def test_they_pass(self, name: str, out: str, tmp_path: Path) -> None:
        found = built_and_checked(*made(name, tmp_path, out))
        assert (found["verified_by_probes"], found["not_sampled"]) == (1, [])
        assert found["recomputed_by_engine_steps"] == found["recomputed_independently"] == 0
        count = samples.count_of(samples.sample_runs("w", SHAPE[0] * SHAPE[1]))
        assert found["elements"] == count < SHAPE[0] * SHAPE[1]

    def test_float64_passes(self, name: str, tmp_path: Path) -> None:
        if name == "regmean_solution":
            models, spec = measured(name, tmp_path, torch.float64, "F64", SHAPE)
        else:
            models, spec = decomposed(name, tmp_path, "F64", "F64", None, SHAPE)
        assert built_and_checked(models, spec)["verified_by_probes"] == 1

    def test_the_bytes_are_those_without_a_record(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        models, spec = made(name, tmp_path)
        told = models.build(spec)
        monkeypatch.setattr(samples, "WHOLE", 1 << 40)
        plain = models.build(spec)
        assert (told.sha256, plain.probes) == (plain.sha256, {})

    def test_a_wide_matrix_passes(self, name: str, tmp_path: Path) -> None:
        assert built_and_checked(*made(name, tmp_path, shape=(40, 230)))["verified_by_probes"] == 1

    def test_a_record_is_read_again(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path)
        write_json(tmp_path / "record.json", models.build(spec).to_json())
        probes = load_record(tmp_path / "record.json").probes
        assert check(models, spec, probes)["verified_by_probes"] == 1

    def test_without_a_record_it_is_told(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path)
        models.build(spec)
        found = check(models, spec, None)
        assert (found["verified_by_probes"], found["not_sampled"]) == (0, ["w"])


@pytest.mark.parametrize("name", SPECTRAL)
class TestOddMatrices:
    @pytest.mark.parametrize("rank", [0, 1, 20])
    def test_lower_ranks_pass(self, name: str, rank: int, tmp_path: Path) -> None:
        base = random(60, 50, seed=0)
        tuned = [
            base + random(60, rank, seed=2 * i + 1) @ random(rank, 50, seed=2 * i + 2) / 50
            for i in range(3)
        ]
        models, spec = decomposed(name, tmp_path, "F64", "F32", [base.double(), *tuned])
        assert built_and_checked(models, spec)["verified_by_probes"] == 1

    def test_equal_models_pass(self, name: str, tmp_path: Path) -> None:
        base, tuned = random(60, 50, seed=0), random(60, 50, seed=1)
        models, spec = decomposed(name, tmp_path, "F32", "F32", [base, tuned, tuned, tuned])
        assert built_and_checked(models, spec)["verified_by_probes"] == 1

    def test_a_stack_passes(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path, shape=(3, 50, 60))
        assert built_and_checked(models, spec)["verified_by_probes"] == 1

    def test_a_stack_with_an_infinite_source_passes(self, name: str, tmp_path: Path) -> None:
        tensors = [random(3, 40, 50, seed=i) for i in range(3)]
        tensors[1][1, 2, 3] = torch.inf
        models, spec = decomposed(name, tmp_path, "F32", "F32", tensors)
        spec = replace(spec, allow_nonfinite=True)
        assert built_and_checked(models, spec)["verified_by_probes"] == 1

    def test_what_is_not_decomposed_is_recomputed(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path, decompose=False)
        assert built_and_checked(models, spec)["recomputed_independently"] == 1
        alter(models, lambda w: w.mul_(1.001))
        with pytest.raises(UserError, match=r"element .* but must be"):
            check(models, spec, None)

    def test_inputs_that_are_sums_pass(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path)
        (tensor,) = spec.tensors
        first, second, *others = tensor.expression.inputs
        total = ex.Linear(((0.3, second), (0.7, first)))
        call = replace(tensor.expression, inputs=(first, total, *others))
        spec = replace(spec, tensors=(replace(tensor, expression=call),))
        assert built_and_checked(models, spec)["verified_by_probes"] == 1

    def test_adapters_pass(self, name: str, tmp_path: Path) -> None:
        factors = {"a": random(4, SHAPE[1], seed=1), "b": random(SHAPE[0], 4, seed=2)}
        tables = {f"m{i}": {"w": random(*SHAPE, seed=3 + i)} for i in range(2)} | {"lora": factors}
        models = cases.Models(tmp_path, tables)
        change = ex.LowRank(
            models.source("lora", "b"), models.source("lora", "a"), 0.01, False, "F32"
        )
        base = models.source("m0")
        tuned = ex.Linear(((1.0, base), (1.0, change)))
        (tensor,) = made(name, tmp_path / "other")[1].tensors
        call = replace(
            tensor.expression,
            inputs=(base, tuned, models.source("m1")),
            per_input=(("weight", (None, 1.0, 0.5)),),
            models=("m0", "lora", "m1"),
        )
        assert built_and_checked(models, models.spec({"w": ("F32", call)}))["verified_by_probes"]

    def test_a_part_of_a_sum_is_verified(self, name: str, tmp_path: Path) -> None:
        """Its rows are not those of what is written, but its sampled elements are in it."""
        models, spec = made(name, tmp_path)
        (tensor,) = spec.tensors
        total = ex.Linear(((0.5, tensor.expression), (0.5, tensor.expression.inputs[0])))
        spec = replace(spec, tensors=(replace(tensor, expression=total),))
        assert built_and_checked(models, spec)["verified_by_probes"] == 1
        alter(models, lambda w: w.view(-1)[:1].mul_(1.001))
        with pytest.raises(UserError, match=r"element \[0, 0\]"):
            check(models, spec, models.build(spec, name="again").probes)

    @pytest.mark.parametrize("factor", [0.5, -1.0, 0.0])
    def test_every_factor_passes(self, name: str, factor: float, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path, **{"lambda": factor})
        assert built_and_checked(models, spec)["verified_by_probes"] == 1


@pytest.mark.parametrize("name", ALL)
class TestAlteredShards:
    """The record is right, and what was written is not."""

    @pytest.fixture
    def shard(self, name: str, tmp_path: Path) -> Iterator[tuple[cases.Models, ShardSpec, Any]]:
        models, spec = made(name, tmp_path)
        probes = models.build(spec).probes
        yield models, spec, probes

    def test_a_sampled_element(self, shard: Any, name: str) -> None:
        models, spec, probes = shard
        alter(models, lambda w: w[0, :1].mul_(1 + 2.0**-20))
        with pytest.raises(UserError, match=r"element \[0, 0\] is"):
            check(models, spec, probes)

    def test_an_element_that_is_not_sampled(self, shard: Any, name: str) -> None:
        models, spec, probes = shard
        place = unsampled()
        alter(models, lambda w: w.view(-1)[place : place + 1].add_(w.abs().mean() / 100))
        with pytest.raises(UserError, match=f"column {place % SHAPE[1]} is not the one"):
            check(models, spec, probes)

    def test_two_rows_in_each_others_place(self, shard: Any, name: str) -> None:
        models, spec, probes = shard
        alter(models, lambda w: w[[1, 0, *range(2, len(w))]])
        with pytest.raises(UserError, match="is not the one that was merged"):
            check(models, spec, probes)

    def test_the_sign_of_the_change(self, shard: Any, name: str) -> None:
        models, spec, probes = shard
        base = models.tensors["m0"]["w"].float()
        alter(models, lambda w: 2 * base - w)
        with pytest.raises(UserError, match="is not the one that was merged"):
            check(models, spec, probes)

    def test_two_singular_directions(self, shard: Any, name: str) -> None:
        models, spec, probes = shard
        base = models.tensors["m0"]["w"].float()

        alter(models, lambda w: base + swapped(w - base))
        with pytest.raises(UserError, match="is not the one that was merged"):
            check(models, spec, probes)

    def test_two_singular_directions_in_16_bits(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path, "BF16")
        probes = models.build(spec).probes
        base = models.tensors["m0"]["w"].float()
        alter(models, lambda w: base + swapped(w.float() - base))
        with pytest.raises(UserError, match=r"element|is not the one"):
            check(models, spec, probes)

    def test_a_number_that_is_not_finite(self, shard: Any, name: str) -> None:
        models, spec, probes = shard
        alter(models, lambda w: w.view(-1)[unsampled() :][:1].fill_(torch.nan))
        with pytest.raises(UserError, match="infinite or NaN"):
            check(models, spec, probes)


class TestWrongMerges:
    """What was written is recorded faithfully, and is not what the recipe asks for."""

    @pytest.mark.parametrize("name", ALL)
    def test_a_model_that_is_left_out(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        models, spec = made(name, tmp_path)
        (tensor,) = spec.tensors
        weights = dict(tensor.expression.per_input)["weight"]
        last = 1 if name == "regmean_solution" else len(weights) - 1
        without = replace(
            tensor.expression,
            per_input=(("weight", (*weights[:last], 0.0, *weights[last + 1 :])),),
        )
        wrong = replace(spec, tensors=(replace(tensor, expression=without),))
        with pytest.raises(UserError, match=r"other singular|is not solved|common subspace"):
            built_and_checked(models, wrong, spec)

    @pytest.mark.parametrize("name", ALL)
    def test_weights_that_are_a_little_off(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path)
        (tensor,) = spec.tensors
        weights = [w and w * (1 + 1e-4 * i) for i, w in enumerate(
            dict(tensor.expression.per_input)["weight"])]  # fmt: skip
        other = replace(tensor.expression, per_input=(("weight", tuple(weights)),))
        wrong = replace(spec, tensors=(replace(tensor, expression=other),))
        with pytest.raises(UserError, match=r"other singular|is not solved|common subspace"):
            built_and_checked(models, wrong, spec)

    @pytest.mark.parametrize(
        ("name", "parameter", "asked", "given"),
        [
            ("iso_cts", "common", 0.8, 0.7),
            ("subspace_boosting", "beta", 0.3, 0.31),
            ("regmean_solution", "scale", 0.9, 0.8999),
            *((name, "lambda", 1.0, 1.0001) for name in SPECTRAL),
        ],
    )
    def test_another_parameter(
        self, name: str, parameter: str, asked: float, given: float, tmp_path: Path
    ) -> None:
        models, spec = made(name, tmp_path, **{parameter: given})
        with pytest.raises(UserError):
            built_and_checked(models, spec, with_parameters(spec, **{parameter: asked}))

    @pytest.mark.parametrize("name", ["tsv_m", "iso_cts"])
    def test_one_singular_vector_too_few(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = spectral_kernels.singular_vectors

        def fewer(matrix: Any, error: Any, keep: int, *rest: Any, **more: Any) -> Any:
            return ours(matrix, error, keep - 1, *rest, **more)

        monkeypatch.setattr(spectral_kernels, "singular_vectors", fewer)
        with pytest.raises(UserError):
            built_and_checked(*made(name, tmp_path))

    @pytest.mark.parametrize("name", ["tsv_m", "iso_cts"])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_vectors_that_are_not_decorrelated(
        self, name: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = spectral_kernels.orthonormal

        def wrong(columns: Any, error: Any, notes: Any, which: str = "left") -> Any:
            found, bound = ours(columns, error, notes, which)
            return (columns if which == side else found), bound

        monkeypatch.setattr(spectral_kernels, "orthonormal", wrong)
        with pytest.raises(UserError, match="merged matrix"):
            built_and_checked(*made(name, tmp_path))

    @pytest.mark.parametrize("name", SPECTRAL)
    @pytest.mark.parametrize("kind", ["sign", "swap", "order", "value"])
    def test_a_wrong_decomposition(
        self, name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = decompose._svd
        first = True

        def wrong(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
            nonlocal first
            left, values, right = (part.clone() for part in ours(matrix))
            if not first:  # one of many is wrong
                return left, values, right
            first = False
            if kind == "sign":
                left[:, 3] *= -1
            elif kind == "swap":
                right[:, [3, 4]] = right[:, [4, 3]]
            elif kind == "order":
                left, values, right = left.flip(1), values.flip(0), right.flip(1)
            else:
                values[3] *= 1.001
            return left, values, right

        monkeypatch.setattr(decompose, "_svd", wrong)
        with pytest.raises(UserError, match="singular"):
            built_and_checked(*made(name, tmp_path))

    @pytest.mark.parametrize("name", SPECTRAL)
    def test_factors_that_are_put_together_wrong(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The notes of the decompositions are right, the matrix is made of other factors."""
        ours = getattr(spectral_kernels, name)

        def wrong(*given: Any) -> tuple[torch.Tensor, float]:
            matrix, bound = ours(*given)
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
            left[:, 5] *= -1
            return (left * values) @ right, bound

        monkeypatch.setattr(spectral_kernels, name, wrong)
        with pytest.raises(UserError, match="the merged matrix"):
            built_and_checked(*made(name, tmp_path))

    def test_a_mean_of_other_singular_values(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = spectral_kernels.iso_c

        def wrong(*given: Any) -> tuple[torch.Tensor, float]:
            matrix, bound = ours(*given)
            return matrix * (1 + 1e-5), bound

        monkeypatch.setattr(spectral_kernels, "iso_c", wrong)
        with pytest.raises(UserError, match="the merged matrix"):
            built_and_checked(*made("iso_c", tmp_path))

    def test_singular_values_that_are_taken_for_zeros(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tensors = [torch.zeros(60, 50), random(60, 50, seed=1)]
        tensors[1][:, 20:] *= 1e-6
        models, spec = decomposed("iso_c", tmp_path, "F32", "F32", tensors)
        assert built_and_checked(models, spec)["verified_by_probes"] == 1
        monkeypatch.setattr(decompose, "_UNIT", 1e-6)
        with pytest.raises(UserError, match="the merged matrix"):
            built_and_checked(models, spec)

    def test_features_that_are_never_active(self, tmp_path: Path) -> None:
        models, spec = made("regmean_solution", tmp_path)
        for key in ("g0", "g1"):
            gram = models.tensors[key]["w"].clone()
            gram[:, [3, 50]] = 0.0
            gram[[3, 50]] = 0.0
            cases.write_file(models.paths[key, cases.FILE], {"w": gram})
        assert built_and_checked(models, spec)["verified_by_probes"] == 1
        alter(models, lambda w: w[:, 3:4].mul_(1.01))
        with pytest.raises(UserError, match="column 3 is not"):
            check(models, spec, models.build(spec, name="again").probes)

    def test_a_gram_matrix_that_is_not_quite_symmetric(self, tmp_path: Path) -> None:
        models, spec = measured("regmean_solution", tmp_path, torch.float64, "F64", (24, 10))
        gram = models.tensors["g0"]["w"].clone()
        gram[2, 5] *= 1 + 1e-6
        cases.write_file(models.paths["g0", cases.FILE], {"w": gram})
        assert built_and_checked(models, spec)["verified_by_probes"] == 1

    def test_an_altered_row_of_a_solution(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = measured_kernels._solved

        def wrong(*given: torch.Tensor) -> torch.Tensor:
            found = ours(*given)
            found[:, 7] *= 1.001
            return found

        monkeypatch.setattr(measured_kernels, "_solved", wrong)
        with pytest.raises(UserError, match="is not solved"):
            built_and_checked(*made("regmean_solution", tmp_path))


@pytest.mark.parametrize("name", ALL)
class TestWrongRecords:
    def test_every_array_counts(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path, shape=(40, 31))
        ((told,),) = models.build(spec).probes.values()
        for i, text in enumerate(told.matrices[0]):
            count = len(text) * 3 // 4 // 4
            numbers = Words([text], "F32").take(count)
            numbers[0] += np.abs(numbers).max() / 100
            texts = list(told.matrices[0])
            texts[i] = to_words(numbers, "F32")
            with pytest.raises(UserError):
                check(models, spec, {"w": [Recorded(told.elements, [texts])]})

    def test_numbers_that_are_too_large_are_refused(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path)
        ((told,),) = models.build(spec).probes.values()
        texts = [
            to_words(np.full(len(text) * 3 // 4 // 4, 3e38), "F32") for text in told.matrices[0]
        ]
        with pytest.raises(UserError):
            check(models, spec, {"w": [Recorded(told.elements, [texts])]})

    @pytest.mark.parametrize("kind", ["none", "short", "text", "elements", "stack"])
    def test_other_forms_are_refused(self, name: str, kind: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path)
        ((told,),) = models.build(spec).probes.values()
        matrices = list(told.matrices[0])
        wrong = {
            "none": Recorded(told.elements, [[]]),
            "short": Recorded(told.elements, [matrices[:-1]]),
            "text": Recorded(told.elements, [["?", *matrices[1:]]]),
            "elements": Recorded(told.elements[:-8], [matrices]),
            "stack": Recorded(told.elements, [matrices, matrices]),
        }[kind]
        with pytest.raises(UserError, match="is not recorded as it must be"):
            check(models, spec, {"w": [wrong]})

    def test_the_record_of_other_models_is_refused(self, name: str, tmp_path: Path) -> None:
        models, spec = made(name, tmp_path)
        (tensor,) = spec.tensors
        weights = dict(tensor.expression.per_input)["weight"]
        weights = tuple(w and w + i for i, w in enumerate(weights))
        call = replace(tensor.expression, per_input=(("weight", weights),))
        other = replace(spec, tensors=(replace(tensor, expression=call),))
        probes = models.build(other, name="other").probes
        models.build(spec)
        with pytest.raises(UserError):
            check(models, spec, probes)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("experts", [1, 3])
def test_rows_of_a_product_are_its_elements(transposed: bool, experts: int) -> None:
    b, a = (random(*s, seed=1).double().numpy() for s in ((7, 2 * experts), (2 * experts, 5)))
    sources = (
        ex.Source("m", "f", key, "F32", tuple(one.shape)) for key, one in (("b", b), ("a", a))
    )
    node = ex.LowRank(*sources, 0.5, transposed, "F32", experts)
    width = node.shape[-1]
    for first, end in [(0, ex.elements(node)), (width, 4 * width), (4 * width, 5 * width)]:
        places = np.arange(first, end)
        found = error_bounds.product_rows(node, b, a, (first, len(places)))
        wanted = error_bounds.product(node, b, a, places)
        assert np.allclose(found.value, wanted.value, rtol=1e-14, atol=1e-300)
        assert np.allclose(found.error, wanted.error, rtol=1e-14, atol=1e-300)


def test_memory_does_not_grow_with_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "STRIPE", 1 << 18)

    def needed(rows: int) -> int:
        sources = tuple(ex.Source(f"m{i}", "f", "w", "F16", (rows, 4096)) for i in range(3))
        (tensor,) = made("iso_c", tmp_path / str(rows))[1].tensors
        call = replace(tensor.expression, inputs=sources, output_shape=(rows, 4096))
        one = replace(tensor, expression=call, shape=(rows, 4096))
        return memory.check_bytes([make_task(one, (), FLOAT32)]) - STREAMING_BYTES

    assert 1e7 < needed(1 << 13) < needed(1 << 17) < needed(1 << 13) + 5e7 < 2e8


def test_a_model_is_verified_by_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = build_model(_TSV)
    (job, *_) = built.build.shards
    output = tmp_path / "check.json"
    arguments = ["--spec", job.digest, "--shard", job.output, "--sources", *job.sources]
    arguments += ["--record", record_path(job.output), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["check_shard.py", *arguments])
    command.main()
    found = verify(built)
    assert json.loads(output.read_text())["verified_by_probes"] > 1
    assert found.not_sampled == () and found.verified_by_probes > 10


def test_records_are_plain_data(tmp_path: Path) -> None:
    models, spec = made("tsv_m", tmp_path)
    record = models.build(spec).to_json()
    assert json.loads(json.dumps(record))["probes"]["w"][0][1]


def test_every_method_that_a_library_decides_has_probes() -> None:
    assert all(probing_of(name) for name in ALL)
