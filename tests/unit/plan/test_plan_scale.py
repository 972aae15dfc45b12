"""Plans at scale, from locks alone: what is planned, not how long it takes."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from helpers import flagship_70b
from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold, patterns
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.files import write_json
from shardmerge.plan.decide import load_plan
from shardmerge.plan.description import load_description
from shardmerge.plan.files import load_spec
from shardmerge.plan.planner import make_plan
from shardmerge.recipe.recipe import load_recipe, parse_recipe
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.sources import lock_path
from tools.bench import plans
from tools.bench.models import DEEPSEEK, deepseek, lock_of

VARIANT = """merge_method: task_arithmetic
base_model: some/base
models:
  - model: some/recipient
    parameters: {weight: 1}
  - model: some/tuned
    parameters: {weight: %s}
dtype: float16
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestSweep:
    def test_ten_variants_read_the_task_vector_s_models_once(self) -> None:
        shapes = plans.cases()["70B"].shapes
        paths = []
        for number in range(10):
            path = Path(f"variant-{number}.yaml")
            path.write_text(VARIANT % (0.1 + 0.05 * number))
            references = [reference.model for reference in load_recipe(path).sources]
            write_json(lock_path(path), lock_of(sorted(references), shapes, 6).to_json())
            paths.append(str(path))
        plan = load_plan(load_settings({"recipes": paths}), say=lambda line: None)
        assert len(plan.builds) == 10
        assert plan.deltas
        merges = [job for build in plan.builds.values() for job in build.shards]
        readers = Counter(path for job in plan.deltas for path in job.sources)
        assert {readers[path] for path in readers if "tuned" in path} == {1}
        assert all("recipient" in path for job in merges for path in job.sources)
        size = sum(job.bytes_written for job in plan.builds["variant-0"].shards)
        assert sum(job.bytes_read for job in plan.deltas) == 2 * size
        assert sum(job.bytes_read for job in merges) == 10 * 2 * size  # recipient and task vector


class TestLargeModels:
    @pytest.mark.parametrize(
        ("case", "shards"),
        [
            pytest.param("70B", 15, id="70B"),
            pytest.param("405B", 191, marks=pytest.mark.slow, id="405B"),
            pytest.param("experts", 163, marks=pytest.mark.slow, id="experts"),
        ],
    )
    def test_is_planned_once(self, tmp_path: Path, case: str, shards: int) -> None:
        shapes = plans.cases()[case].shapes
        plans.prepare(tmp_path, plans.cases()[case])
        settings = load_settings({"recipes": ["recipe.yaml"]})
        plan = load_plan(settings, say=lambda line: None)
        (build,) = plan.builds.values()
        specs = [load_spec(job.digest) for job in build.shards]
        assert sum(len(spec.tensors) for spec in specs) == len(shapes)
        assert [spec.digest for spec in specs] == [job.digest for job in build.shards]
        assert len(specs) in (shards, shards + 1)  # the reference may be the second source
        assert load_plan(settings, head=False, say=lambda line: None) == plan

    def test_sums_that_are_alike_are_folded_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def counted(module: ModuleType, name: str) -> list[object]:
            found, plain = [], getattr(module, name)

            def call(*given: object) -> object:
                found.append(given)
                return plain(*given)

            monkeypatch.setattr(module, name, call)
            return found

        folds, facts = counted(fold, "to_expression"), counted(patterns, "_pattern")
        shapes = plans.cases()["70B"].shapes
        average = plans.cases()["experts"].recipe
        plans.prepare(tmp_path, plans.Case(shapes, average, 15))
        plan = load_plan(load_settings({"recipes": ["recipe.yaml"]}), say=lambda line: None)
        kinds = len(set(shapes.values()))
        assert kinds < len(shapes) / 20
        assert len(folds) == kinds
        assert len(facts) == kinds
        (build,) = plan.builds.values()
        specs = [load_spec(job.digest) for job in build.shards]
        assert [spec.digest for spec in specs] == [job.digest for job in build.shards]


@pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
def test_no_collector_is_needed_to_let_go_of_a_lock(numerics: str) -> None:
    recipe = parse_recipe(flagship_70b.RECIPE.read_text(), "recipe.yaml")
    lock = flagship_70b.lock_of(flagship_70b.MODELS, flagship_70b.llama_7b())
    settings = load_settings({"recipes": ["recipe.yaml"], "numerics": numerics})
    known, before = weakref.ref(lock), gc.isenabled()
    gc.disable()
    try:
        plan = make_plan([(recipe, lock)], settings, lambda key, _, file: f"{key}/{file}").plan
        del lock
        assert plan.builds
        assert known() is None
    finally:
        if before:
            gc.enable()


class TestQuantised:
    def test_codes_become_the_weights_of_a_plain_model(self, tmp_path: Path) -> None:
        """A small DeepSeek-V3 in FP8, with all kinds of tensors of the real one."""
        shapes, dtypes = deepseek(4, 4)
        config = DEEPSEEK | {"num_hidden_layers": 4, "n_routed_experts": 4}
        real = plans.cases()["671B, FP8 to BF16"]
        case = real._replace(shapes=shapes, files=3, dtypes=dtypes, config=config)
        plans.prepare(tmp_path, case)
        plan = load_plan(load_settings({"recipes": ["recipe.yaml"]}), say=lambda line: None)
        (build,) = plan.builds.values()
        made = {t.name: t for job in build.shards for t in load_spec(job.digest).tensors}
        assert made.keys() == {name for name in shapes if not name.endswith("_scale_inv")}
        assert {tensor.dtype for tensor in made.values()} == {"BF16"}
        coded = {name for name, dtype in dtypes.items() if dtype == "F8_E4M3"}
        leaves = {n: set(map(type, ex.walk(t.expression))) for n, t in made.items()}
        assert {name for name, kinds in leaves.items() if ex.Decoded in kinds} == coded
        counts = {"fp8-block": len(coded)}
        decoded = load_description(build.digest).decoded
        assert decoded == {"some/one": counts, "some/other": counts}
        read = sum(job.bytes_read for job in build.shards)
        assert read == 2 * sum(tensor_bytes(dtypes.get(n, "BF16"), s) for n, s in shapes.items())
