"""The bytes of every method: the same on every processor, for any threads, blocks and windows."""

from __future__ import annotations

import builtins
import functools
import json
import math
import operator
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import mpmath
import pytest
import torch

from helpers import kernel_cases as cases
from helpers.method_bytes import GOLDEN, by_the_engine, with_new
from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.numerics import FLOAT32, MERGEKIT
from shardmerge.engine import native
from shardmerge.methods import elementary
from shardmerge.methods.kernels import circular
from shardmerge.methods.kernels.execute import TorchElements
from shardmerge.methods.kernels.roots import root
from shardmerge.methods.registry import Group, kernel_of, methods, version_of

TESTS = Path(__file__).parents[2]
#: A change here changes what users have built: it needs a new ``version`` of the method.
#: Of torch's code for vectors, from the plainest on.
LEVELS = ("default", "avx2", "avx512")


def best_level() -> str:
    found = torch.backends.cpu.get_cpu_capability().lower()
    return found if found in LEVELS else "default"


@pytest.mark.parametrize("level", LEVELS)
def test_golden_bytes(tmp_path: Path, level: str) -> None:
    if LEVELS.index(level) > LEVELS.index(best_level()):
        pytest.skip(f"this processor has no {level}")
    done = subprocess.run(
        [sys.executable, TESTS / "helpers" / "method_bytes.py", tmp_path],
        env=os.environ
        | {"ATEN_CPU_CAPABILITY": level, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["level"].lower() == level
    assert found["hashes"] == GOLDEN["hashes"]


def test_numbers_are_added_up_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compensated(numbers: Iterable, start: object = 0) -> object:  # as from Python 3.12 on
        found = list(numbers)
        is_sum = found and all(isinstance(one, (int, float)) for one in found)
        return math.fsum(found) if is_sum else functools.reduce(operator.add, found, start)

    monkeypatch.setattr(builtins, "sum", compensated)
    monkeypatch.setattr(native, "is_usable", lambda: False)
    found = by_the_engine(tmp_path, {}, 1)
    assert found == {name: GOLDEN["hashes"][name] for name in found}


class TestAdding:
    def test_only_what_is_new_gets_hashes(self) -> None:
        known = GOLDEN["hashes"] | {"old F16": "gone"}
        versions = GOLDEN["versions"] | {"slerp": 1}
        fresh = dict.fromkeys([*GOLDEN["hashes"], "new F16"], "made")
        found = with_new({"versions": versions, "hashes": known}, fresh)
        assert found["versions"] == GOLDEN["versions"]
        changed = {label for label in found["hashes"] if found["hashes"][label] == "made"}
        assert changed == {"new F16", *(x for x in fresh if x.split(" ")[0] == "slerp")}
        assert "old F16" not in found["hashes"]


class TestVersions:
    def test_are_those_of_the_golden_bytes(self) -> None:
        found = {m.name: m.version for m in methods() if m.version != 1}
        assert found == GOLDEN["versions"]

    def spec(self, name: str, numerics: str) -> ShardSpec:
        tensor = ex.Source("a", "f", "w", "F16", (2, 2))
        call = ex.Call(name, (tensor, tensor), 0, output_shape=(2, 2))
        return ShardSpec((OutputTensor("w", "F16", (2, 2), call),), {("a", "f"): "x"}, numerics)

    def test_count_for_the_jobs_that_call_the_method(self) -> None:
        def versions(name: str, numerics: str) -> object:
            return self.spec(name, numerics).to_json().get("versions")

        assert versions("slerp", FLOAT32) == {"slerp": version_of("slerp", FLOAT32)}
        assert versions("ties", FLOAT32) is None
        assert versions("slerp", MERGEKIT) is None

    def test_are_part_of_a_jobs_identity(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = {name: self.spec(name, FLOAT32).digest for name in ("slerp", "ties")}
        monkeypatch.setattr(
            "shardmerge.algebra.spec.version_of", lambda name, _: 1 if name == "ties" else 99
        )
        assert self.spec("slerp", FLOAT32).digest != before["slerp"]
        assert self.spec("ties", FLOAT32).digest == before["ties"]


class TestFunctions:
    """Within two units in the last place of the true values, wherever an element stands."""

    COUNT = 2000
    SAMPLES = {  # noqa: RUF012
        "log": lambda x: (x * 8).exp(),
        "exp": lambda x: x * 200,
        "sin": lambda x: x * 1000,
        "cos": lambda x: x * 1000,
        "acos": lambda x: x,
    }

    def samples(self, name: str) -> torch.Tensor:
        random = torch.Generator().manual_seed(3)
        x = torch.rand(self.COUNT, generator=random, dtype=torch.float64) * 2 - 1
        x[: self.COUNT // 4] **= 9  # near 0, where log and acos are near 1
        if name == "acos":
            x[:100] = 1 - x[:100].abs() * 1e-9
        return self.SAMPLES[name](x)

    @staticmethod
    def value(name: str, x: torch.Tensor) -> torch.Tensor:
        if name in ("log", "exp"):
            elements = TorchElements([x], x.shape, 0)
            return getattr(elementary, name)(elements, x)
        return torch.as_tensor(getattr(circular, name)(x.numpy()))

    @pytest.mark.parametrize("name", SAMPLES)
    def test_accuracy(self, name: str) -> None:
        x = self.samples(name)
        with mpmath.workprec(200):
            exact = [getattr(mpmath, name)(value) for value in x.tolist()]
            got = self.value(name, x).tolist()
            units = [
                abs(mpmath.mpf(a) - b) / mpmath.mpf(2) ** (mpmath.frexp(b)[1] - 53)
                for a, b in zip(got, exact, strict=True)
            ]
        assert max(units) < 2

    @pytest.mark.parametrize("name", SAMPLES)
    def test_place_changes_no_bit(self, name: str) -> None:
        x = self.samples(name)
        alone = torch.cat([self.value(name, x[i : i + 1]) for i in range(0, self.COUNT, 7)])
        assert cases.differing(alone, self.value(name, x)[::7].clone()) == 0

    @pytest.mark.parametrize("number", [0.0, 0.3, -0.9, 1.6, -2.5, 3.2, 40.0])
    def test_both_of_one_number_are_those_of_each(self, number: float) -> None:
        each = [circular.at_number(one, number) for one in (circular.cos, circular.sin)]
        assert [*map(float.hex, circular.cos_and_sin(number))] == [*map(float.hex, each)]

    def test_numbers_inside_the_range_need_not_be_brought_to_it(self) -> None:
        x = torch.linspace(-709.0, 709.0, self.COUNT, dtype=torch.float64)
        x[7] = float("nan")
        inside = elementary.exp(TorchElements([x], x.shape, 0), x, inside=True)
        assert cases.differing(inside, self.value("exp", x)) == 0

    def test_exponentials_of_float32(self) -> None:
        x = torch.linspace(-87.0, 88.0, self.COUNT)
        near = elementary.exp_single(TorchElements([x], x.shape, 0), x)
        error = (near.double() / x.double().exp() - 1).abs()
        assert near.dtype == torch.float32
        assert (error < (2 + x.abs()) * 2**-23).all()
        nan = torch.tensor([torch.nan])
        assert elementary.exp_single(TorchElements([nan], (1,), 0), nan).isnan().all()

    @pytest.mark.parametrize("most", [1e-6, 1e-3, 0.3, 1.0, 87.0])
    def test_falling_exponentials_near_0(self, most: float) -> None:
        x = torch.linspace(-most, most, 2002)
        ratio, excess = elementary.falling(TorchElements([x], x.shape, 0), x)
        bound = 2.0**-19 if most <= 1 else 2.0**-17
        with mpmath.workprec(200):
            for one, *found in zip(x.tolist(), ratio.tolist(), excess.tolist(), strict=True):
                exact = mpmath.exp(-one), mpmath.exp(-one) - 1 + one
                errors = [abs(a / b - 1) for a, b in zip(found, exact, strict=True)]
                assert max(errors) < bound
        zero = torch.zeros(1)
        ends = elementary.falling(TorchElements([zero], (1,), 0), zero)
        assert [end.item() for end in ends] == [pytest.approx(1, abs=2**-22), 0.0]

    def test_rest_of_logarithms(self) -> None:
        x = torch.linspace(-0.25, 1 / 3, 1000, dtype=torch.float64).numpy()
        x[::3] **= 9
        with mpmath.workprec(300):
            exact = [value - mpmath.log1p(value) for value in x.tolist()]
            found = elementary.rest_of_log(x).tolist()
            errors = [abs(a / b - 1) for a, b in zip(found, exact, strict=True) if b]
        assert max(errors) < 2**-45

    def test_limits(self) -> None:
        nan, inf = float("nan"), float("inf")
        x = torch.tensor([0.0, -0.0, -800.0, 800.0, inf, -inf, nan], dtype=torch.float64)
        expected = torch.tensor([1.0, 1.0, 0.0, inf, inf, 0.0, nan], dtype=torch.float64)
        assert cases.differing(self.value("exp", x), expected) == 0
        ends = self.value("acos", torch.tensor([1.0, -1.0], dtype=torch.float64))
        assert ends.tolist() == [0.0, torch.pi]
        assert self.value("log", torch.ones(3, dtype=torch.float64)).tolist() == [0.0] * 3


class TestRoots:
    def test_are_rounded_correctly(self) -> None:
        """Torch's are not: one in a hundred is off by a bit on some processors."""
        random = torch.Generator().manual_seed(3)
        squares = (torch.rand(2000, generator=random, dtype=torch.float64) * 100).numpy()
        with mpmath.workprec(53):
            exact = [float(mpmath.sqrt(mpmath.mpf(one))) for one in squares.tolist()]
        assert root(squares).tolist() == exact
        assert [root(one) for one in squares.tolist()] == exact
        assert (root(-1.0), root(-0.0)) == (0.0, 0.0)

    def test_dora_divides_by_them(self) -> None:
        rows = torch.rand(2000, 1, generator=torch.Generator().manual_seed(3)).double() * 100
        ones = torch.ones(2000, dtype=torch.float64)
        kernel, _ = kernel_of("dora", FLOAT32)
        made = kernel(Group([rows, ones], None, {"transposed": False}, {}, "w", ()))
        squares = rows.square().numpy()
        assert made.tolist() == (rows.numpy() * (1 / root(squares))).tolist()

    def test_a_step_has_a_version_too(self) -> None:
        assert version_of("dora", FLOAT32) == 2
        assert version_of("dora", MERGEKIT) == 1
