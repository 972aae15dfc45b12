"""What is shown of interference: values added up, words, plots; and what damaged files say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from test_report_plots import images, size, texts

from shardmerge.algebra import expression as ex
from shardmerge.algebra.interference import KEPT as KEPT_SHOWN
from shardmerge.algebra.interference import PAIRS, worth_showing
from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import write_json
from shardmerge.plan.statistics import ShardStatistics, load_statistics
from shardmerge.report.canvas import HEIGHT
from shardmerge.report.frame import frame_of
from shardmerge.report.interference import (
    ALL,
    COSINE,
    DISTANCE,
    KEPT,
    SIGNS,
    Interference,
    collect,
    interference_csv,
    load_interference,
)
from shardmerge.report.interference_plots import PLOTS
from shardmerge.report.interference_words import facts, warnings
from shardmerge.report.summary_facts import Findings
from shardmerge.report.summary_page import _interference

A, B = "lab/one - lab/base", "lab/two - lab/base"
LABELS = [A, B, "lab/one"]


def tensor(
    pair: tuple[float, ...] = (0.0, 1.0, 1.0, 5, 10, 0.0),
    parent: tuple[float, ...] = (1.0, 4.0, 0.0),
    kept: tuple[int, int] = (3, 6),
    elements: int = 10,
    sampled: int = 10,
) -> dict[str, Any]:
    return {
        "elements": elements,
        "sampled": sampled,
        "pairs": [[0, 1, *pair]],
        "parents": [[2, *parent]],
        "kept": [[0, *kept]],
    }


def of(tensors: dict[str, Any], labels: Any = LABELS) -> Interference:
    found = forms.read(ShardStatistics, {"labels": labels, "tensors": tensors})
    return collect("merged", ["lab/base", "lab/one", "lab/two"], frame_of(tensors), [found])


def up(layer: int) -> str:
    return f"model.layers.{layer}.mlp.up_proj.weight"


def down(layer: int) -> str:
    return f"model.layers.{layer}.mlp.down_proj.weight"


class TestSums:
    def test_of_one_tensor(self) -> None:
        found = of({up(0): tensor(pair=(3.0, 9.0, 4.0, 4, 5, 0.01))})
        (row,) = found.of(COSINE)[A, B].values()
        assert (row.value, row.error) == (0.5, 0.01)
        assert found.of(SIGNS)[A, B]["up_proj", 0].value == 0.8
        assert found.of(DISTANCE)["lab/one", ""]["up_proj", 0].value == 0.5
        assert found.of(KEPT)[A, ""]["up_proj", 0].value == 0.5

    def test_a_layer_counts_larger_tensors_more(self) -> None:
        """Sums of a sample stand for the whole tensor."""
        large = tensor(pair=(-2.0, 4.0, 4.0, 2, 10, 0.0), elements=40, parent=(9.0, 9.0, 0.0))
        small = tensor(pair=(4.0, 4.0, 4.0, 10, 10, 0.0), parent=(0.0, 4.0, 0.0))
        found = of({up(0): large, down(0): small})
        (row,) = found.by_layer(COSINE)[A, B].values()
        assert row.value == pytest.approx((4 * -2 + 4) / (4 * 4 + 4), rel=1e-5)
        assert found.by_layer(SIGNS)[A, B][0].value == pytest.approx((4 * 2 + 10) / 50)
        distance = found.by_layer(DISTANCE)["lab/one", ""][0].value
        assert distance == pytest.approx(math.sqrt(36 / 40), rel=1e-5)

    def test_errors_of_shares_are_those_of_single_elements(self) -> None:
        found = of({up(0): tensor(pair=(0.0, 1.0, 1.0, 50, 100, 0.0), elements=10**6, sampled=100)})
        assert found.of(SIGNS)[A, B]["up_proj", 0].error == pytest.approx(0.05)
        whole = of({up(0): tensor(pair=(0.0, 1.0, 1.0, 50, 100, 0.0))})
        assert whole.of(SIGNS)[A, B]["up_proj", 0].error == 0

    def test_errors_of_equal_tensors_shrink_by_the_root(self) -> None:
        one = tensor(pair=(1.0, 2.0, 2.0, 5, 10, 0.02), parent=(1.0, 4.0, 0.02))
        found = of({up(0): one, down(0): one})
        assert found.by_layer(COSINE)[A, B][0].error == pytest.approx(0.02 / math.sqrt(2), rel=1e-4)
        error = found.by_layer(DISTANCE)["lab/one", ""][0].error
        assert error == pytest.approx(0.02 / math.sqrt(2), rel=1e-4)

    def test_a_task_vector_of_zeros_has_no_direction(self) -> None:
        found = of({up(0): tensor(pair=(0.0, 0.0, 1.0, 0, 0, 0.0), kept=(0, 0))})
        assert found.of(COSINE) == found.of(SIGNS) == found.of(KEPT) == {}

    def test_the_table_has_every_row(self) -> None:
        found = of({up(0): tensor(), "lm_head.weight": tensor()})
        lines = interference_csv(found).splitlines()
        assert lines[0] == "measure,first,second,module,layer,value,standard_error"
        assert len(lines) == 1 + len(found.rows) == 1 + 4 * 2 * 2
        assert f"cosine,{A},{B},lm_head,,0.0,0.0" in lines
        assert f"distance,lab/one,,{ALL},0,0.5,0.0" in lines


class TestFiles:
    def test_written_and_read_again(self, tmp_path: Path) -> None:
        found = of({up(0): tensor(), "lm_head.weight": tensor()})
        write_json(tmp_path / "x.json", forms.written(found))
        assert load_interference(tmp_path / "x.json") == found

    @pytest.mark.parametrize(
        "damage", [{"rows": [["x", "", "", "", 0, 1, 1]]}, {"layers": -1}, {"rows": [[1]]}]
    )
    def test_damaged_ones_are_refused(self, tmp_path: Path, damage: Any) -> None:
        write_json(tmp_path / "x.json", forms.written(of({up(0): tensor()})) | damage)
        with pytest.raises(UserError, match="not what a job of the workflow writes"):
            load_interference(tmp_path / "x.json")

    @pytest.mark.parametrize(
        "damage",
        [{"pairs": [[0, 7, 0, 1, 1, 1, 1, 0]]}, {"sampled": 0}, {"sampled": 99}, {"kept": [[0]]}],
    )
    def test_damaged_records_are_refused(self, tmp_path: Path, damage: Any) -> None:
        statistics = {"labels": LABELS, "tensors": {up(0): tensor() | damage}}
        write_json(tmp_path / "x.json", {"statistics": statistics})
        with pytest.raises(UserError, match="not the record of a check"):
            load_statistics(tmp_path / "x.json")

    def test_an_earlier_record_has_none(self, tmp_path: Path) -> None:
        write_json(tmp_path / "x.json", {"passed": True})
        assert load_statistics(tmp_path / "x.json") is None


def opposite(cosine: float = -0.5, error: float = 0.0) -> dict[str, Any]:
    return tensor(pair=(cosine, 1.0, 1.0, 5, 10, error))


class TestWords:
    def test_opposite_directions_are_told_by_layers(self) -> None:
        found = of({up(0): tensor(), up(1): opposite(), up(2): opposite(-0.3), up(3): tensor()})
        assert warnings(found) == [
            "one and two point in opposite directions in layers 1-2, up_proj: cosine down to -0.50."
        ]

    def test_what_may_be_chance_is_not_told(self) -> None:
        assert warnings(of({up(0): opposite(-0.2, 0.05)})) == []
        assert warnings(of({up(0): opposite(-0.05)})) == []

    def test_what_is_hardly_kept_is_told(self) -> None:
        found = of({"lm_head.weight": tensor(kept=(1, 1000))})
        assert warnings(found) == ["Less than 1 % of one - base is kept in lm_head."]

    def test_many_places_are_counted(self) -> None:
        names = [f"model.layers.0.mlp.part{i}.weight" for i in range(9)]
        lines = warnings(of({name: opposite() for name in names}))
        assert len(lines) == 6
        assert lines[-1] == "4 more places like this: interference.csv has all."

    def test_facts_have_the_span_of_layers(self) -> None:
        rows = facts(of({up(0): opposite(), up(1): opposite(0.25)}))
        assert (
            "cosine similarity of task vectors",
            "one - base and two - base",
            "-0.5 to 0.25",
        ) in rows
        assert ("distance to a parent", "one", "0.5") in rows

    def test_the_summary_has_table_and_warning(self) -> None:
        page = "".join(_interference(of({up(1): opposite()})))
        assert "<td>-0.5</td>" in page and "point in opposite directions in layer 1" in page
        assert list(_interference(Findings().statistics)) == []


class TestPlots:
    @pytest.fixture
    def many(self) -> Interference:
        """Five models with long names: ten pairs."""
        labels = [f"lab/a-model-with-a-long-name-{i} - lab/base" for i in range(5)] + ["lab/x"]
        pairs = [[i, j, 0.1 * j, 1, 1, 5, 10, 0] for i in range(5) for j in range(i + 1, 5)]
        row = {"elements": 10, "sampled": 10, "pairs": pairs, "parents": [[5, 1, 4, 0]]}
        kept = [[i, i, 5] for i in range(5)]
        return of({up(n): row | {"kept": kept} for n in range(4)}, labels)

    @pytest.mark.parametrize("what", PLOTS)
    def test_the_same_bytes_every_time(self, tmp_path: Path, what: str, many: Any) -> None:
        for name in "ab":
            PLOTS[what](many, tmp_path / f"{name}.svg")
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
        assert size(tmp_path / "a.svg")[1] <= HEIGHT

    def test_the_most_telling_pairs_are_shown(self, tmp_path: Path, many: Any) -> None:
        PLOTS["directions"](many, tmp_path / "x.svg")
        found = texts(tmp_path / "x.svg")
        assert sum(" | " in text for text in found) == 9
        assert any(text.startswith("The 9 of 10 pairs that tell most") for text in found)

    def test_colours_are_opposite_for_opposite_cosines(self, tmp_path: Path) -> None:
        PLOTS["directions"](of({up(0): opposite(-0.5), up(1): opposite(0.5)}), tmp_path / "x.svg")
        (low, high), *_ = [image[0] for image in images(tmp_path / "x.svg") if image.shape[1] == 2]
        assert low[0] > low[2] and high[2] > high[0]  # red, blue

    @pytest.mark.parametrize("what", PLOTS)
    def test_nothing_measured_is_said(self, tmp_path: Path, what: str) -> None:
        PLOTS[what](of({}), tmp_path / "x.svg")
        assert any("merged" in text for text in texts(tmp_path / "x.svg"))

    def test_parents_have_a_line_each(self, tmp_path: Path, many: Any) -> None:
        PLOTS["distances"](many, tmp_path / "x.svg")
        assert "lab/x" in texts(tmp_path / "x.svg")


def source(model: str) -> ex.Source:
    return ex.Source(model, "f", "w", "F16", (4,))


class TestWorthShowing:
    def test_one_task_vector_has_only_distances(self) -> None:
        delta = ex.Delta(source("one"), source("base"), "F16")
        assert worth_showing([source("x"), ex.Linear(((1.0, source("base")), (1.0, delta)))]) == ()

    def test_pairs_and_sparse_methods(self) -> None:
        inputs = tuple(map(source, ("base", "one", "two")))
        call = ex.Call("ties", inputs, 0, models=("base", "one", "two"), output_shape=(4,))
        assert worth_showing([source("x"), call]) == (KEPT_SHOWN, PAIRS)
        one = ex.Call("ties", inputs[:2], 0, models=("base", "one"), output_shape=(4,))
        assert worth_showing([one]) == (KEPT_SHOWN,)
