"""Rounding, sampling and the bounds of recomputed values, against exact arithmetic and torch."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmerge.algebra import expression as ex
from shardmerge.algebra.samples import RUN, RUNS, positions, sample_runs
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.check import kernels
from shardmerge.check.float_formats import FLOAT_FORMATS, decoded, half_ulp, round_to, stored_dtype
from shardmerge.check.kernels import TooLargeError
from shardmerge.check.recompute import Recomputer

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def stored(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's elements as they lie in a file."""
    if tensor.dtype == torch.bfloat16:
        return tensor.reshape(-1).view(torch.int16).numpy().view(np.uint16)
    return tensor.reshape(-1).numpy()


class Lab:
    """Source tensors in memory, and a recomputer over them."""

    def __init__(self, numerics: Numerics = FLOAT32, **tensors: torch.Tensor) -> None:
        self.tensors = tensors
        self.sources = {
            name: ex.Source(name, "f", "t", _code(t), tuple(t.shape)) for name, t in tensors.items()
        }
        self.recomputer = Recomputer(numerics, (), self.read)

    def __getitem__(self, name: str) -> ex.Source:
        return self.sources[name]

    def read(self, leaf: Any, runs: Any) -> Any:
        return stored(self.tensors[leaf.model])[positions(runs)]

    def estimate(self, expression: Any, dtype: Any = "F16") -> Any:
        return self.recomputer.estimate(expression, ((0, ex.elements(expression)),), dtype)


def _code(tensor: torch.Tensor) -> str:
    return next(code for code, dtype in TORCH.items() if dtype == tensor.dtype)


def normal(seed: int, dtype: torch.dtype, count: int = 1000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)


class TestRoundoff:
    @given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
    @settings(max_examples=300, deadline=None)
    def test_torch_rounds_alike(self, numbers: Any) -> None:
        wide = torch.tensor(numbers, dtype=torch.float32)
        for code in ("F16", "BF16", "F32"):
            expected = wide.to(TORCH[code]).double().numpy()
            rounded = round_to(code, wide.double().numpy())
            assert rounded.tobytes() == expected.tobytes()

    @given(st.floats(allow_nan=False))
    @settings(max_examples=300, deadline=None)
    def test_numpy_rounds_float64_alike(self, number: Any) -> None:
        with np.errstate(over="ignore"):
            for code in ("F16", "F32"):
                expected = np.float64(np.float64(number).astype(stored_dtype(code)))
                assert round_to(code, np.array([number]))[0] == expected

    def test_nan_stays(self) -> None:
        assert np.isnan(round_to("F16", np.array([np.nan]))).all()

    @pytest.mark.parametrize("code", ["F16", "F32", "F64"])
    def test_half_ulp_is_half_the_spacing(self, code: str) -> None:
        values = np.array([0.0, 1e-7, 0.3, 1.0, 1.5, 2.0, 1000.0], stored_dtype(code))
        spacing = np.maximum(np.spacing(values).astype(np.float64) / 2, 5e-324)
        assert (half_ulp(code, values.astype(np.float64)) == spacing).all()

    @pytest.mark.parametrize("code", list(TORCH))
    def test_largest_number(self, code: str) -> None:
        assert FLOAT_FORMATS[code].maximum == torch.finfo(TORCH[code]).max

    def test_every_bfloat16(self) -> None:
        bits = np.arange(1 << 16).astype(np.uint16)
        expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).double().numpy()
        assert np.array_equal(decoded(bits, "BF16"), expected, equal_nan=True)


class TestSampleRuns:
    @given(st.text(max_size=20), st.integers(1, 10**9))
    @settings(deadline=None)
    def test_first_last_and_spread(self, name: Any, count: Any) -> None:
        runs = sample_runs(name, count)
        assert runs[0][0] == 0
        assert sum(runs[-1]) == count
        assert all(first % RUN == 0 for first, _ in runs)
        ends = [first + length for first, length in runs]
        assert all(end <= first for end, (first, _) in zip(ends, runs[1:], strict=False))
        assert sum(length for _, length in runs) <= RUN * RUNS
        gaps = [b - a for (a, _), (b, _) in itertools.pairwise(runs)]
        assert max(gaps, default=0) <= 2 * count / RUNS + 2 * RUN

    def test_small_tensors_whole(self) -> None:
        assert sample_runs("t", RUN * RUNS) == ((0, RUN * RUNS),)
        assert sample_runs("t", 0) == ()

    def test_names_decide_places(self) -> None:
        assert sample_runs("a", 10**8) == sample_runs("a", 10**8) != sample_runs("b", 10**8)


class TestSums:
    @given(
        st.lists(
            st.tuples(st.floats(-3, 3, width=32), st.floats(-100, 100, width=16)),
            min_size=1,
            max_size=6,
        ),
        st.sampled_from(["F16", "BF16", "F32"]),
    )
    @settings(max_examples=300, deadline=None)
    def test_bound_holds(self, terms: Any, code: Any) -> None:
        """Float32 sums, with and without fused products, lie within the bound."""
        tensors = {f"m{i}": torch.tensor([x]).to(TORCH[code]) for i, (_, x) in enumerate(terms)}
        lab = Lab(**tensors)
        expression = ex.Linear(tuple((c, lab[f"m{i}"]) for i, (c, _) in enumerate(terms)))
        estimate = lab.estimate(expression)
        numbers = [tensors[f"m{i}"].double().item() for i in range(len(terms))]
        pairs = [(np.float64(c), np.float64(x)) for (c, _), x in zip(terms, numbers, strict=True)]
        exact = sum(Fraction(float(c)) * Fraction(float(x)) for c, x in pairs)
        bound = Fraction(float(estimate.error[0]))
        unit = Fraction(1, 2**50) * sum(abs(Fraction(float(c * x))) for c, x in pairs)
        assert abs(Fraction(float(estimate.value[0])) - exact) <= bound + unit
        apart = fused = None
        for c, x in pairs:
            product = np.float32(c * x)  # exact in float64
            apart = product if apart is None else np.float32(apart + product)
            fused = product if fused is None else np.float32(np.float64(fused) + c * x)
        for total in (apart, fused):
            assert abs(np.float64(total) - estimate.value[0]) <= estimate.error[0]

    def test_exact_where_nothing_rounds(self) -> None:
        lab = Lab(a=normal(1, torch.float16), b=normal(2, torch.float16))
        estimate = lab.estimate(ex.Linear(((0.25, lab["a"]), (0.75, lab["b"]))))
        large = np.abs(estimate.value) > 0.5
        assert (estimate.error[large] == 0).mean() > 0.9

    def test_bound_is_small_beside_half_precision(self) -> None:
        """A flipped last bit of a float16 result is never within the bound."""
        lab = Lab(a=normal(1, torch.float16), b=normal(2, torch.float16))
        estimate = lab.estimate(ex.Linear(((0.3, lab["a"]), (0.7, lab["b"]))))
        ulp = 2 * half_ulp("F16", np.abs(estimate.value))
        assert (estimate.error < 0.01 * ulp)[np.abs(estimate.value) > 0.1].all()

    def test_infinite_source(self) -> None:
        lab = Lab(a=torch.tensor([float("inf"), 1.0]).half(), b=torch.tensor([1.0, 1.0]).half())
        estimate = lab.estimate(ex.Linear(((0.5, lab["a"]), (0.5, lab["b"]))))
        assert estimate.value.tolist() == [float("inf"), 1.0]
        assert estimate.error[0] == 0

    def test_overflow_in_between_is_unknown(self) -> None:
        huge = torch.tensor([3e38])
        lab = Lab(a=huge, b=-huge)
        estimate = lab.estimate(ex.Linear(((1.5, lab["a"]), (1.5, lab["b"]))), "F32")
        assert estimate.error[0] == np.inf


class TestTaskVectors:
    @pytest.mark.parametrize("code", ["F16", "BF16", "F32", "F64"])
    @pytest.mark.parametrize("to", ["F16", "BF16", "F32"])
    def test_rounded_as_defined(self, code: str, to: str) -> None:
        """float32 sources: the difference is rounded to float32, then to the vector's type."""
        a, b = normal(1, TORCH[code]), normal(2, TORCH[code])
        lab = Lab(a=a, b=b)
        estimate = lab.estimate(ex.Delta(lab["a"], lab["b"], to))
        difference = a.double() - b.double()
        if code != "F64":
            difference = (a.float() - b.float()).double()
        assert (estimate.error == 0).all()
        assert (estimate.value == round_to(to, difference.numpy())).all()

    def test_as_a_term(self) -> None:
        a, b, c = (normal(i, torch.float16) for i in range(3))
        lab = Lab(a=a, b=b, c=c)
        delta = ex.Delta(lab["a"], lab["b"], "F16")
        estimate = lab.estimate(ex.Linear(((1.0, lab["c"]), (1.0, delta))))
        rounded = (a.float() - b.float()).half().float()
        error = np.abs(estimate.value - (c.float() + rounded).double().numpy())
        assert (error <= estimate.error).all()
        assert (estimate.error <= 2.0**-23 * np.abs(estimate.value) + 1e-40).all()


class TestCalls:
    def call(self, lab: Any, method: Any, shape: Any, **parameters: Any) -> Any:
        per_input = parameters.pop("per_input", {})
        return ex.Call(
            method,
            (lab["a"], lab["b"]),
            0,
            tuple(sorted(parameters.items())),
            tuple(sorted(per_input.items())),
            "t",
            ("a", "b"),
            shape,
        )

    def test_slerp_keeps_the_length(self) -> None:
        a, b = normal(1, torch.float32, 64), normal(2, torch.float32, 64)
        lab = Lab(a=(a / a.norm()).view(8, 8), b=(b / b.norm()).view(8, 8))
        estimate = lab.estimate(self.call(lab, "slerp", (8, 8), t=0.3), "F32")
        assert np.linalg.norm(estimate.value) == pytest.approx(1, abs=1e-6)
        assert (estimate.error < 1e-6).all()

    def test_nothing_is_made_up_for_large_tensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "WHOLE", 63)
        lab = Lab(a=normal(1, torch.float32, 64), b=normal(2, torch.float32, 64))
        with pytest.raises(TooLargeError):
            lab.estimate(self.call(lab, "slerp", (64,), t=0.3), "F32")

    def test_runs_of_elementwise_kernels_are_the_whole_tensors(self) -> None:
        count = RUN * RUNS * 3 + 57
        for numerics in (FLOAT32, MERGEKIT):
            lab = Lab(
                numerics, a=normal(1, torch.float16, count), b=normal(2, torch.float16, count)
            )
            call = self.call(lab, "nearswap", (count,), t=0.01)
            runs = sample_runs("t", count)
            whole = lab.estimate(call).value[positions(runs)]
            assert len(runs) == RUNS
            assert (lab.recomputer.estimate(call, runs, "F16").value == whole).all()

    def test_mergekit_rounds_in_stated_types(self) -> None:
        a, b = normal(1, torch.float16), normal(2, torch.float16)
        lab = Lab(MERGEKIT, a=a, b=b)
        call = self.call(lab, "linear", (1000,), normalize=False, per_input={"weight": (0.3, 0.7)})
        estimate = lab.estimate(ex.Cast(call, "BF16"), "BF16")
        expected = (0.3 * a.float() + 0.7 * b.float()).half().bfloat16().double().numpy()
        assert (estimate.error == 0).all()
        assert np.mean(estimate.value != expected) < 0.01  # 0.3 * a + 0.7 * b is fused or not
