"""Numbers with their type are torch's own, bit by bit: all of 16 bits where a function is asked."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from shardmerge.methods.kernels import typed as made
from shardmerge.methods.kernels.typed import TypedElements, TypedNumbers, mean_of_each, numbers_of
from shardmerge.methods.passes import KeyBand
from shardmerge.methods.program import Writer
from shardmerge.methods.symbolic import StepValue

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
NARROW = ("F16", "BF16")


def all_of(code: str) -> torch.Tensor:
    """Return all numbers of 16 bits."""
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(DTYPES[code])


def some_of(code: str, count: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Return random numbers, infinite ones and NaN and zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    found = (torch.randn(count, generator=generator) * scale).to(DTYPES[code])
    found[:4] = torch.tensor([0.0, -0.0, float("inf"), float("nan")])
    return found


def as_typed(tensor: torch.Tensor, code: str) -> TypedNumbers:
    return TypedNumbers(tensor.float().numpy(), code)


def assert_same(found: TypedNumbers, wanted: torch.Tensor) -> None:
    """Compare all bits, but for those of NaN."""
    own, other = found.array, wanted.float().numpy()
    assert found.dtype == next(code for code, dtype in DTYPES.items() if dtype == wanted.dtype)
    assert own.shape == other.shape
    number = ~np.isnan(other)
    np.testing.assert_array_equal(np.isnan(own), ~number)
    np.testing.assert_array_equal(own[number].view(np.int32), other[number].view(np.int32))


@pytest.mark.parametrize("code", NARROW)
@pytest.mark.parametrize("name", ["acos", "cos", "sin"])
def test_a_function_of_each_number_of_16_bits(code: str, name: str) -> None:
    numbers = all_of(code)
    if name == "acos":
        numbers = numbers[(numbers.abs() <= 1) | numbers.isnan()]
    # numbers one by one and in vectors have the same bits
    assert_same(getattr(as_typed(numbers, code), name)(), getattr(numbers, name)())
    one = numbers[len(numbers) // 3]
    assert_same(getattr(as_typed(one.reshape(1), code), name)(), getattr(one, name)().reshape(1))


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_the_same_by_torchs_code_for_other_processors(capability: str) -> None:
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    ran = subprocess.run(
        [*command, "-k", "16_bits"], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.split()[0] == 6 * "."


def test_float32_is_torchs_own() -> None:
    numbers = some_of("F32", 1001, 5)
    for name in ("cos", "sin"):
        assert_same(getattr(as_typed(numbers, "F32"), name)(), getattr(numbers, name)())
    assert_same(as_typed(numbers, "F32").clamp(-1, 1).acos(), numbers.clamp(-1, 1).acos())


@pytest.mark.parametrize("code", DTYPES)
def test_operators(code: str) -> None:
    left, right = (some_of(code, 5000, seed) for seed in (1, 2))
    a, b = as_typed(left, code), as_typed(right.flip(0), code)
    right = right.flip(0)
    for found, wanted in (
        (a + b, left + right),
        (a - b, left - right),
        (a * b, left * right),
        (a / b, left / right),
        (a.abs(), left.abs()),
        (a.clamp(1e-7, np.inf), left.clamp(min=1e-7)),
        (a.clamp(-1, 1), left.clamp(-1, 1)),
        (a * -1 + 1, 1 - left),
        (made.where(a < 0, 0.0, a), torch.where(left < 0, 0, left)),
    ):
        assert_same(found, wanted)
    for number in (0.3, 1e-8, 123456.789, 1 / 3):
        assert_same(a * number, left * number)
        assert_same(a + number, left + number)
        assert_same(a.over(number), left / number)
        near = as_typed(torch.full((3,), number).to(DTYPES[code]), code)
        for one, other in ((a, left), (near, torch.full((3,), number).to(DTYPES[code]))):
            np.testing.assert_array_equal((one < number).array, (other < number).numpy())
            np.testing.assert_array_equal((one <= number).array, (other <= number).numpy())
            np.testing.assert_array_equal((one > number).array, (other > number).numpy())
            np.testing.assert_array_equal((one >= number).array, (other >= number).numpy())
            np.testing.assert_array_equal(one.eq(number).array, (other == number).numpy())
            np.testing.assert_array_equal(one.ne(number).array, (other != number).numpy())


@pytest.mark.parametrize("code", DTYPES)
def test_numbers_of_a_recipe(code: str) -> None:
    numbers = [0.1, 1 / 3, 1e-9, 7e4, -2.5, 1e39, 0.0]
    assert_same(numbers_of(numbers, code), torch.tensor(numbers, dtype=DTYPES[code]))


@pytest.mark.parametrize("code", NARROW)
def test_rounding_of_many_numbers_at_once(code: str) -> None:
    """Those in the middle between two, next to it, subnormal ones and too large ones among them."""
    own = all_of(code).float().numpy()
    own = np.sort(own[np.isfinite(own)])
    middles = (own[1:] / 2 + own[:-1] / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    finite = np.concatenate([own, middles, *near, np.float32([-0.0, 1e-30, -1e-30])])
    for numbers in (finite, np.append(finite, np.float32([7e4, -3e38, np.inf, -np.inf, np.nan]))):
        assert_same(numbers_of(numbers, code), torch.from_numpy(numbers).to(DTYPES[code]))


@pytest.mark.parametrize("code", DTYPES)
def test_sums_and_means_of_few(code: str) -> None:
    torch.set_num_threads(1)
    for count, width in itertools.product(range(1, 7), (1, 2, 7, 31, 64, 101, 5632)):
        rows = torch.stack([some_of(code, width + 4, 10 * count + k)[4:] for k in range(count)])
        mean = mean_of_each([as_typed(row, code) for row in rows])
        assert_same(mean, rows.mean(dim=0))
        if count <= 4:
            one = rows[:, 0].contiguous()
            found = as_typed(one, code).sum()
            assert_same(TypedNumbers(found.array.reshape(1), code), one.sum().reshape(1))


@pytest.mark.parametrize("code", DTYPES)
def test_elements(code: str) -> None:
    from shardmerge.methods.kernels.execute import TorchElements

    tensors = [some_of(code, 96, seed, 0.1) for seed in (1, 2)]
    shape, runs = (8, 32), ((32, 64), (160, 32))
    theirs = TorchElements(tensors, shape, runs=runs)
    ours = TypedElements([as_typed(one, code) for one in tensors], shape, runs)
    bits = np.packbits(np.arange(256) % 3 == 0, bitorder="little")

    def chosen(first: int, count: int) -> np.ndarray:
        return bits[first // 8 : -(-(first + count) // 8)]

    def function(x) -> list:  # noqa: ANN001
        value = x[0] - x[1] * x.full(1 / 3)
        rows = x.along(np.linspace(0, 1, 8), "last")
        columns = x.along(np.linspace(0, 1, 32), "first")
        mean = x.quotient(value.double() + x.along(np.linspace(0, 1, 8), "last", wide=True), 3)
        return [
            x.where(value < 0.05, value, 0.25),
            x.where(value > 0.0, x.single(value), 1.0),
            x.number(x.chosen(chosen)) * rows,
            value / columns,
            x.rounded(x.single(value) * x.single(x[1])),
            x.rounded(mean),
        ]

    for found, wanted in zip(function(ours), function(theirs), strict=True):
        assert_same(found, wanted)


def test_elements_of_a_band_are_those_of_their_float32() -> None:
    values, runs = numbers_of(np.linspace(0, 1, 96), "BF16"), ((32, 64), (160, 32))
    low, high = (int(np.float32(one).view(np.int32)) for one in (0.25, 0.75))
    band = KeyBand(low, high, (40, 64), (0, 64))
    found = TypedElements([values], (256,), runs).inside(values, band)
    places = np.concatenate([np.arange(32, 96), np.arange(160, 192)])
    inside = (values.array > 0.25) & (values.array < 0.75)
    inside |= (values.array == 0.25) & (places >= 40) & (places < 64)
    inside |= (values.array == 0.75) & (places < 64)
    assert found.dtype == "BOOL"
    assert inside.any()
    np.testing.assert_array_equal(found.array, inside)


def test_numbers_divide_by_a_function() -> None:
    """A card would multiply by the reciprocal, if an operator divided by a number."""
    with pytest.raises(TypeError, match="quotient"):
        as_typed(torch.ones(3), "F32") / 3.0
    writer = Writer([])
    with pytest.raises(TypeError, match="quotient"):
        StepValue(writer, writer.full(1.0, "F32")) / 3.0
