"""Statistics of a shard: small tensors by hand, and the same bits however a shard was made."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from helpers.built_model import MERGED, Built, build_model, check, inputs_of
from helpers.engine_cases import FILE, Models
from shardmerge.algebra import expression as ex
from shardmerge.algebra.interference import comparable
from shardmerge.algebra.samples import RUN, RUNS, sample_runs
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.check import statistics
from shardmerge.check.shard import check_shard
from shardmerge.check.statistics import run_sums
from shardmerge.engine import build_shard
from shardmerge.plan.files import load_spec

BASE = [1.0, 2.0, 3.0, 4.0]
#: Task vectors: (1, 0, -2, 3) and (1, 5, 2, 2).
ONE, TWO = [2.0, 2.0, 1.0, 7.0], [2.0, 7.0, 5.0, 6.0]
TWO_VECTORS = """\
name: merged
merge_method: task_arithmetic
base_model: lab/base
models:
  - {model: lab/tuned, parameters: {weight: 0.5}}
  - {model: lab/long, parameters: {weight: 0.25}}
dtype: float16
"""
LARGE = {"hidden": 64, "inter": 320, "vocab": 300, "layers": 2}


def measured(
    tmp_path: Path, expression: Any, values: Mapping[str, Any], numerics: Numerics = FLOAT32
) -> dict[str, Any]:
    """Return the statistics of a shard with one tensor, ``w``, and what its labels stand for.

    Args:
        tmp_path: Where the shard is built.
        expression: Makes the tensor's expression of the models.
        values: Of each model's tensor.
        numerics: In which it is built.
    """
    models = Models(tmp_path / "models", {m: {"w": torch.tensor(v)} for m, v in values.items()})
    made = expression(models)
    spec = ShardSpec(
        (OutputTensor("w", "F32", made.shape, made),),
        {(model, FILE): f"sha256:{model}" for model in values},
        numerics,
    )
    shard = tmp_path / "shard.safetensors"
    build_shard(spec, models.paths, shard)
    found = check_shard(spec, shard, models.paths, ())["statistics"]
    row = found["tensors"].get("w", {})
    for kind, named in (("kept", 1), ("pairs", 2), ("parents", 1)):
        row[kind] = {
            " and ".join(found["labels"][i] for i in one[:named]): one[named:]
            for one in row.get(kind, ())
        }
    return row


def sum_of_two(models: Models) -> ex.Linear:
    base, one, two = (models.source(m) for m in ("base", "one", "two"))
    deltas = ex.Delta(one, base, "F32"), ex.Delta(two, base, "F32")
    return ex.Linear(((1.0, base), (0.5, deltas[0]), (1.0, deltas[1])))


def call(method: str, per_input: Any, **parameters: Any) -> Any:
    def make(models: Models) -> ex.Call:
        return ex.Call(
            method,
            tuple(models.source(m) for m in ("base", "one", "two")),
            0,
            tuple(sorted(parameters.items())),
            tuple(sorted(per_input.items())),
            "w",
            ("base", "one", "two"),
            models.source("base").shape,
        )

    return make


class TestByHand:
    VALUES: ClassVar[dict[str, list[float]]] = {"base": BASE, "one": ONE, "two": TWO}

    def test_task_vectors_of_a_sum(self, tmp_path: Path) -> None:
        found = measured(tmp_path, sum_of_two, self.VALUES)
        assert (found["elements"], found["sampled"]) == (4, 4)
        dot, one, two = 1 - 4 + 6, 1 + 4 + 9, 1 + 25 + 4 + 4
        # the second element is 0 in one of them, and the third has two signs
        assert found["pairs"] == {"one - base and two - base": [dot, one, two, 2, 3, 0]}
        assert found["kept"] == {}

    def test_distances_to_all_parents(self, tmp_path: Path) -> None:
        found = measured(tmp_path, sum_of_two, self.VALUES)
        result = [2.5, 7.0, 4.0, 7.5]
        wanted = {
            name: [math.dist(result, v) ** 2, sum(x * x for x in v), 0]
            for name, v in self.VALUES.items()
        }
        assert found["parents"] == {k: pytest.approx(v, rel=1e-9) for k, v in wanted.items()}

    def test_without_task_vectors_the_sources_are_compared(self, tmp_path: Path) -> None:
        def mean(models: Models) -> ex.Linear:
            return ex.Linear(((0.5, models.source("one")), (0.5, models.source("two"))))

        found = measured(tmp_path, mean, {"one": ONE, "two": TWO})
        assert found["pairs"] == {"one and two": [4 + 14 + 5 + 42, 58, 114, 4, 4, 0]}

    def test_a_copy_is_at_no_distance(self, tmp_path: Path) -> None:
        found = measured(tmp_path, lambda models: models.source("one"), {"one": ONE})
        assert found["parents"] == {"one": [0, 58, 0]}
        assert found["pairs"] == found["kept"] == {}

    def test_infinite_values_are_left_out(self, tmp_path: Path) -> None:
        found = measured(tmp_path, sum_of_two, self.VALUES | {"two": [math.inf, 1.0, 1.0, 1.0]})
        assert found["pairs"] == {}
        assert set(found["parents"]) == set()  # the result is infinite itself

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_ties_keeps_the_largest_of_the_elected_sign(
        self, tmp_path: Path, numerics: Numerics
    ) -> None:
        weights = {"weight": (None, 1.0, 1.0), "density": (None, 0.5, 0.5)}
        options = {"normalize": True, "rescale": False, "lambda": 1.0, "int8_mask": False}
        made = call("ties", weights, **options)
        found = measured(tmp_path, made, self.VALUES, numerics)
        # kept by magnitude: (-2, 3) of the first, (5, 2) of the second; the third sums up to 0,
        # which counts as plus, so that the first one's -2 is left out
        assert found["kept"] == {"one - base": [1, 3], "two - base": [2, 4]}
        assert found["pairs"]["one - base and two - base"][:3] == [3, 14, 34]

    def test_ram_keeps_what_changed_by_more(self, tmp_path: Path) -> None:
        found = measured(tmp_path, call("ram", {}, epsilon=1.5), self.VALUES)
        assert found["kept"] == {"one - base": [2, 3], "two - base": [3, 4]}


class TestAnyWay:
    """The same statistics, whatever way a shard was made."""

    @pytest.fixture(autouse=True)
    def in_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def all_of(self, built: Built) -> str:
        found = {Path(job.output).name: check(job)["statistics"] for job in built.build.shards}
        assert any(row["pairs"] for one in found.values() for row in one["tensors"].values())
        return json.dumps(found)

    def test_stored_and_computed_task_vectors(self) -> None:
        found = []
        for deltas in ("store", "fuse"):
            found.append(self.all_of(build_model(TWO_VECTORS, LARGE, deltas=deltas)))
            shutil.rmtree("results")
        assert found[0] == found[1]

    def test_one_and_two_threads(self) -> None:
        built = build_model(TWO_VECTORS, LARGE, deltas="fuse")
        found = [self.all_of(built)]
        for job in built.build.shards:
            spec = load_spec(job.digest)
            sources, _ = inputs_of(job, spec)
            build_shard(spec, sources, Path(job.output), threads=2)
        assert self.all_of(built) == found[0]

    def test_what_was_measured_anew_is_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Statistics read no elements that the check of the same tensor has read."""
        built = build_model(TWO_VECTORS, LARGE, deltas="fuse")
        job, _ = built.shard_with(MERGED)
        with monkeypatch.context() as patch:
            patch.setattr(statistics.Statistics, "add", lambda *args, **kwargs: None)
            alone = reads(patch, job)
        with monkeypatch.context() as patch:
            assert reads(patch, job) == alone


def reads(patch: pytest.MonkeyPatch, job: Any) -> int:
    """Return how often a check reads elements of a tensor."""
    from shardmerge.check.samples import TensorFile

    count, read = [], TensorFile.read
    patch.setattr(TensorFile, "read", lambda *args: count.append(1) or read(*args))
    check(job)
    return len(count)


class TestSample:
    def test_runs_add_up_in_one_order(self) -> None:
        values = np.random.default_rng(0).standard_normal(3 * RUN + 5)
        sums = run_sums(values)
        assert len(sums) == 4
        assert sums == pytest.approx(
            [part.sum() for part in np.split(values, [RUN, 2 * RUN, 3 * RUN])]
        )
        by_hand = np.pad(values[3 * RUN :], (0, RUN - 5))
        while len(by_hand) > 1:
            by_hand = by_hand[: len(by_hand) // 2] + by_hand[len(by_hand) // 2 :]
        assert sums[3] == by_hand[0]

    @pytest.mark.parametrize("share", [0.0, 0.6])
    def test_the_standard_error_is_that_of_many_samples(self, tmp_path: Path, share: float) -> None:
        """Of a cosine that is known, over tensors of random numbers."""
        random = np.random.default_rng(1)
        count = RUN * RUNS * 4
        cosines, errors = [], []
        for i in range(60):
            one, noise = random.standard_normal((2, count))
            two = share * one + math.sqrt(1 - share**2) * noise
            row = statistics._Sample(count, RUN * RUNS)
            place = np.concatenate([np.arange(a, a + n) for a, n in sample_runs(f"{i}", count)])
            parts = [run_sums(x[place] * y[place]) for x, y in ((one, two), (one, one), (two, two))]
            sums = [math.fsum(part) for part in parts]
            cosines.append(
                sums[0] / math.sqrt(sums[1] * sums[2])
                - one @ two / math.sqrt((one @ one) * (two @ two))
            )
            errors.append(row.error(statistics._cosine_parts(*parts, sums)))
        assert np.std(cosines) == pytest.approx(np.mean(errors), rel=0.3)

    def test_a_whole_tensor_has_no_error(self) -> None:
        assert statistics._Sample(100, 100).error(np.ones(1)) == 0


def source(model: str, shape: tuple[int, ...] = (4, 4)) -> ex.Source:
    return ex.Source(model, FILE, "w", "F16", shape)


class TestComparable:
    def test_a_fine_tune_is_a_parent_if_its_base_is_there(self) -> None:
        base, delta = source("base"), ex.Delta(source("one"), source("base"), "F16")
        found = comparable(ex.Linear(((1.0, base), (0.5, delta))))
        assert found.parents == {"base": (base,), "one": (base, delta)}
        assert set(comparable(ex.Linear(((0.5, delta),))).parents) == set()

    def test_adapters_are_task_vectors(self) -> None:
        product = ex.LowRank(source("a", (4, 2)), source("a", (2, 4)), 1.0, False, "F32")
        found = comparable(ex.Linear(((1.0, source("base")), (1.0, product))))
        assert set(found.vectors) == {"a"}

    def test_what_a_method_makes_for_another_is_not_computed_anew(self) -> None:
        inputs = source("base"), source("one")
        inner = ex.Call("ties", inputs, 0, models=("base", "one"), output_shape=(4, 4))
        outer = ex.Call("slerp", (inner, source("two")), None, (), (), "w", ("x", "two"), (4, 4))
        found = comparable(outer)
        assert set(found.parents) == {"base", "one", "two"}
        assert set(found.vectors) == {"one - base"}
        assert [one.call for one in found.calls] == [inner]

    def test_another_shape_is_not_compared(self) -> None:
        inputs = source("base"), source("norms", (4,))
        made = ex.Call("dora", inputs, None, (), (), "w", (), (4, 4))
        assert comparable(made).parents == {}
