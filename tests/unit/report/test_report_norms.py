"""Norms of task vectors, from the records of real jobs on tiny models."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_report_plots import SCRIPTS, texts

from helpers.built_model import inputs_of
from helpers.models import llama
from shardmerge.base.files import write_json, write_text
from shardmerge.engine import build_shard
from shardmerge.plan.decide import load_plan
from shardmerge.plan.description import load_description
from shardmerge.plan.files import load_spec
from shardmerge.plan.records import load_record
from shardmerge.recipe.settings import load_settings
from shardmerge.report.frame import frame_of
from shardmerge.report.norms import Norm, measured, norm_cells, norm_table

RECIPE = """\
name: merged
merge_method: task_arithmetic
base_model: lab/base
models:
  - model: lab/base
  - model: lab/tuned
    parameters:
      weight:
        - {filter: v_proj, value: [0.5, 0.9]}
        - {filter: mlp, value: 0.25}
        - {value: 0}
dtype: float16
"""
COPY = "name: merged\nmerge_method: passthrough\nmodels: [{model: lab/base}]\ndtype: float16\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "tuned")):
        llama(Path("models", name), seed, layers=3, files=2 + seed)


def build(recipe: Any = RECIPE, **config: Any) -> tuple[Any, ...]:
    """Run all jobs of a recipe; return the build's digest and the paths of the records."""
    write_text("recipe.yaml", recipe)
    sources = {f"lab/{name}": f"models/{name}" for name in ("base", "tuned")}
    settings = load_settings({"recipes": ["recipe.yaml"], "sources": sources, **config})
    plan = load_plan(settings, say=lambda line: None)
    records = []
    (made,) = plan.builds.values()
    for job in [*plan.deltas, *made.shards]:
        spec = load_spec(job.digest)
        files, deltas = inputs_of(job, spec)
        output = Path(job.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        record = build_shard(spec, files, output, deltas=deltas)
        path = output.parent / "records" / f"{output.stem}.json"
        write_json(path, record.to_json())
        records.append(path)
    return made.digest, records


def measure(digest: Any, records: Any) -> tuple[Any, ...]:
    description = load_description(digest)
    specs = {shard.file: load_spec(shard.digest) for shard in description.shards}
    found = measured(specs, {str(path): load_record(path) for path in records})
    return description, found


def tensors(name: Any) -> dict[Any, Any]:
    files = sorted(Path("models", name).glob("*.safetensors"))
    return {k: v.float() for file in files for k, v in load_file(file).items()}


class TestMeasured:
    def test_norms_are_those_of_the_tensors(self, project: None) -> None:
        _, found = measure(*build(deltas="fuse"))
        base, tuned = tensors("base"), tensors("tuned")
        expected = {n for n in base if "mlp" in n or "v_proj" in n}
        assert {norm.tensor for norm in found} == expected
        for norm in found:
            delta = (tuned[norm.tensor] - base[norm.tensor]).half().float()
            assert norm.norm == pytest.approx(torch.linalg.norm(delta).item(), rel=1e-5)
            assert norm.base == pytest.approx(torch.linalg.norm(base[norm.tensor]).item(), rel=1e-5)
            assert norm.label == "lab/tuned - lab/base"

    def test_stored_task_vectors_give_the_same(self, project: None) -> None:
        _, fused = measure(*build(deltas="fuse"))
        _, stored = measure(*build(deltas="store"))
        assert [n.tensor for n in stored] == [n.tensor for n in fused]
        for a, b in zip(fused, stored, strict=True):
            assert (a.norm, a.base) == pytest.approx((b.norm, b.base), rel=1e-6)

    def test_without_the_records_that_know_the_base_nothing_is_claimed(self, project: None) -> None:
        digest, records = build(deltas="store")
        merged = [path for path in records if "deltas" not in path.parts]
        assert measure(digest, merged)[1] == []


class TestCells:
    def test_experts_count_as_one_tensor(self) -> None:
        name = "model.layers.0.mlp.experts.{}.up_proj.weight"
        norms = [Norm(name.format(0), "d", 3.0, 10.0), Norm(name.format(1), "d", 4.0, 20.0)]
        (cells,) = norm_cells(norms, frame_of(n.tensor for n in norms)).values()
        (spread,) = cells.values()
        assert spread.mean == pytest.approx(5 / math.sqrt(500))
        assert (spread.low, spread.high) == (0.2, 0.3)

    def test_a_base_of_zeros_has_no_relative_norm(self) -> None:
        norms = [Norm("lm_head.weight", "d", 1.0, 0.0)]
        assert norm_cells(norms, frame_of(["lm_head.weight"])) == {}

    def test_the_table_has_coefficient_and_place(self) -> None:
        norms = [Norm("model.layers.7.mlp.up_proj.weight", "b - a", 1.0, 8.0)]
        table = norm_table(norms, {norms[0].tensor: [["a", 1.0], ["b - a", 0.5]]})
        header, row, end = [line.split("\t") for line in table.split("\n")]
        assert dict(zip(header, row, strict=True)) == {
            "tensor": "model.layers.7.mlp.up_proj.weight",
            "layer": "7",
            "module": "mlp.up_proj",
            "task_vector": "b - a",
            "coefficient": "0.5",
            "norm": "1",
            "base_norm": "8",
            "relative_norm": "0.125",
        }
        assert end == [""]


class TestCommand:
    def run(self, digest: Any, records: Any) -> Any:
        subprocess.run(
            [sys.executable, str(SCRIPTS / "plot_norms.py"), "--build", digest,
             "--records", *map(str, records), "--output", "n.svg", "--table", "n.tsv"],
            check=True,
        )  # fmt: skip
        return texts(Path("n.svg"))

    def test_plot_and_table(self, project: None) -> None:
        found = self.run(*build())
        assert "tuned - base" in found
        lines = Path("n.tsv").read_text().split("\n")
        assert len(lines) == 1 + 3 * 4 + 1

    def test_a_model_without_task_vector_says_so(self, project: None) -> None:
        assert any("has no task vector" in text for text in self.run(*build(COPY)))

    def test_mergekits_numerics_say_so(self, project: None) -> None:
        found = self.run(*build(numerics="mergekit-0.1.5"))
        assert any("computes no task vectors apart" in text for text in found)
