"""Plots: what they show, and that they are the same bytes every time."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from helpers.large_models import large_plan, llama_70b, mixtral
from shardmerge.base.errors import UserError
from shardmerge.base.forms import written
from shardmerge.plan.plan import Build
from shardmerge.plan.records import MergeRecord
from shardmerge.report.benchmarks import draw_benchmarks
from shardmerge.report.canvas import HEIGHT, WIDTH, figure
from shardmerge.report.coefficients import coefficients
from shardmerge.report.plots import draw_coefficients
from shardmerge.report.timings import PHASE_COLOURS, Timing, draw_timings, timing

SCRIPTS = Path(__file__).parents[3] / "scripts"
NAME = "miquplus-midnight-70b"


def texts(svg: Path) -> list[str]:
    """Return what is written in a plot: matplotlib notes each text beside its glyphs."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


def size(svg: Path) -> tuple[float, float]:
    """Return a plot's width and height in inches."""
    root = ElementTree.parse(svg).getroot()
    return tuple(float(root.get(key).removesuffix("pt")) / 72 for key in ("width", "height"))


def images(svg: Path) -> list:
    """Return the pixels of the pictures in a plot, in order: [row, column, channel], 0 to 1."""
    from matplotlib.image import imread

    root = ElementTree.parse(svg).getroot()
    found = [e.get("{http://www.w3.org/1999/xlink}href") for e in root.iter() if "image" in e.tag]
    return [imread(io.BytesIO(base64.b64decode(data.split(",", 1)[1]))) for data in found]


class TestCanvas:
    def test_a_failed_drawing_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), figure(tmp_path / "x.svg", 1):
            _ = 1 / 0
        assert list(tmp_path.iterdir()) == []

    def test_a_users_matplotlibrc_changes_nothing(self, tmp_path: Path) -> None:
        import matplotlib

        terms = {f"model.layers.{i}.mlp.up_proj.weight": [["a", i / 3]] for i in range(4)}
        plots = []
        for colour in ("black", "red"):
            with matplotlib.rc_context({"text.color": colour, "svg.hashsalt": colour}):
                draw_coefficients("x", coefficients(terms), [], tmp_path / colour)
            plots.append((tmp_path / colour).read_bytes())
        assert plots[0] == plots[1]

    def test_it_can_write_png(self, tmp_path: Path) -> None:
        with figure(tmp_path / "x.png", 1):
            pass
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


class TestCoefficients:
    def draw(self, tmp_path: Path, terms: Any, sources: Any = ()) -> Any:
        output = tmp_path / "x.svg"
        draw_coefficients("model", coefficients(terms), list(sources), output)
        return output

    def test_each_cell_has_the_colour_of_its_value(self, tmp_path: Path) -> None:
        values = {
            ("q_proj", 0): 1.0,
            ("q_proj", 1): 0.25,
            ("up_proj", 0): 0.25,
            ("up_proj", 1): 0.0,
        }
        terms = {
            f"model.layers.{layer}.{row}.weight": [["a", value]]
            for (row, layer), value in values.items()
        }
        svg = self.draw(tmp_path, terms | {"lm_head.weight": [["a", 0.25]]})
        grid, outside = [p for p in images(svg) if p.shape[:2] in ((2, 2), (1, 1))]
        white = [1, 1, 1]
        assert grid[1, 1, :3].tolist() == white  # not used
        assert grid[0, 1].tolist() == grid[1, 0].tolist() == outside[0, 0].tolist()
        assert grid[0, 0, :3].sum() < grid[0, 1, :3].sum() < 3  # more is darker
        assert "lm_head  0.25" in texts(svg)

    def test_negative_is_red_and_positive_blue_on_one_scale(self, tmp_path: Path) -> None:
        layer = "model.layers.{}.up_proj.weight"
        terms = {layer.format(i): [["a", 1.0], ["b", v]] for i, v in enumerate((-1.0, 1.0))}
        a, b = [p for p in images(self.draw(tmp_path, terms)) if p.shape[:2] == (1, 2)]
        assert a[0, 0].tolist() == a[0, 1].tolist() == b[0, 1].tolist()
        red, _, blue = b[0, 0, :3]
        assert red > blue
        red, _, blue = b[0, 1, :3]
        assert blue > red

    def test_panels_carry_short_names(self, tmp_path: Path) -> None:
        terms = {"lm_head.weight": [["lab/a", 1.0], ["lab/b - lab/a", 0.5]]}
        found = texts(self.draw(tmp_path, terms, ["lab/a", "lab/b"]))
        assert {"a", "b - a", "lm_head  1", "lm_head  0.5"} <= set(found)

    def test_no_folder_of_this_machine_is_named(self, tmp_path: Path) -> None:
        """The picture is published with the card."""
        one, two = "/srv/somebody/a/model", "/srv/somebody/b/model"
        terms = {"lm_head.weight": [[one, 1.0], [f"{two} - {one}", 0.5]]}
        picture = self.draw(tmp_path, terms, [one, two])
        assert {"model", "model (2) - model"} <= set(texts(picture))
        assert "somebody" not in picture.read_text(encoding="utf-8")

    def test_experts_that_differ_are_said_to(self, tmp_path: Path) -> None:
        name = "model.layers.0.mlp.experts.{}.up_proj.weight"
        same = {name.format(i): [["a", 0.5]] for i in range(3)}
        assert not any("differ" in text for text in texts(self.draw(tmp_path, same)))
        svg = self.draw(tmp_path, same | {name.format(1): [["a", 0.7]]})
        assert any("the 3 experts of a layer differ" in text for text in texts(svg))

    @pytest.mark.parametrize("layers", [1, 12, 80, 126])
    @pytest.mark.parametrize("panels", [1, 2, 6])
    def test_it_fits_a_window(self, tmp_path: Path, layers: int, panels: int) -> None:
        terms = {name: [[f"m{i}", 0.1] for i in range(panels)] for name in llama_70b(layers)}
        width, height = size(self.draw(tmp_path, terms))
        assert width == pytest.approx(WIDTH)
        assert height <= HEIGHT

    def test_a_mixture_of_experts_fits_as_well(self, tmp_path: Path) -> None:
        terms = {name: [["a", 0.5], ["b", 0.5]] for name in mixtral(8, experts=64)}
        assert size(self.draw(tmp_path, terms))[1] <= HEIGHT


class TestTimings:
    def record(self, scale: Any = 1.0, **changes: Any) -> Any:
        seconds = {phase: scale * (i + 1) / 10 for i, phase in enumerate(PHASE_COLOURS)}
        seconds["total"] = scale
        told = {"seconds": seconds, "bytes_read": 3 * 10**9, "size": 10**9}
        return MergeRecord(sha256="0" * 64, **told | changes)

    def test_shares_speed_and_copies_are_written(self, tmp_path: Path) -> None:
        records = [timing("one", self.record()), timing("two", self.record(2, whole_copy=True))]
        draw_timings(records, tmp_path / "x.svg")
        found = texts(tmp_path / "x.svg")
        assert {"one", "two", "1 s, 1.00 GB/s", "2 s, 500 MB/s, copy"} <= set(found)
        assert "start 0.3 s (7 %)" in found
        assert "hash 1.5 s (33 %)" in found
        (note,) = [text for text in found if text.startswith("2 shards: ")]
        assert "6.00 GB read, 2.00 GB made in 3 s of jobs (667 MB/s)" in note

    def test_of_many_the_slowest_are_shown_in_order(self, tmp_path: Path) -> None:
        records = [timing(f"shard-{i:03}", self.record(1 + i % 7)) for i in range(191)]
        draw_timings(records, tmp_path / "x.svg")
        shown = [text for text in texts(tmp_path / "x.svg") if text.startswith("shard-")]
        assert shown == sorted(shown)
        assert len(shown) == 24
        assert all(int(name[-3:]) % 7 == 6 for name in shown)
        assert size(tmp_path / "x.svg")[1] <= HEIGHT

    def test_no_record_and_no_time_are_no_error(self, tmp_path: Path) -> None:
        draw_timings([], tmp_path / "x.svg")
        assert "No job has run." in texts(tmp_path / "x.svg")
        draw_timings(
            [Timing("x", dict.fromkeys(PHASE_COLOURS, 0.0), 0.0, 0, 0)], tmp_path / "y.svg"
        )
        assert (tmp_path / "y.svg").exists()


class TestBenchmarks:
    def row(self, model: Any, label: Any = "task/acc", value: Any = 0.5, **changes: Any) -> Any:
        row = {"model": model, "label": label, "value": value, "stderr": 0.02, "samples": 200}
        return row | {"notes": [], "headline": True, "higher_is_better": True} | changes

    def draw(
        self, tmp_path: Path, rows: Any, models: Any, footnotes: Any = (), merged: Any = None
    ) -> Any:
        table = {"models": models, "cells": rows, "footnotes": list(footnotes)}
        draw_benchmarks(table, tmp_path / "x.svg", merged)
        return texts(tmp_path / "x.svg")

    def test_values_errors_and_what_is_missing_are_written(self, tmp_path: Path) -> None:
        rows = [self.row("a"), self.row("b", value=0.75, stderr=None)]
        rows.append(self.row("a", "other/ppl", 12.345, higher_is_better=False))
        found = self.draw(tmp_path, rows, ["a", "b"])
        assert {"0.500 ± 0.020", "0.750", "12.35 ± 0.02", " not measured"} <= set(found)
        assert {"task/acc ↑", "other/ppl ↓"} <= set(found)
        assert any("200 questions each" in text for text in found)

    def test_parts_of_a_group_come_after_what_was_asked(self, tmp_path: Path) -> None:
        rows = [self.row("a", "part/acc", headline=False), self.row("a")]
        found = self.draw(tmp_path, rows, ["a"])
        assert found.index("task/acc ↑") < found.index("part/acc ↑")

    def test_chance_is_drawn_where_it_is_known(self, tmp_path: Path) -> None:
        assert not any("chance" in t for t in self.draw(tmp_path, [self.row("a")], ["a"]))
        found = self.draw(tmp_path, [self.row("a", chance=0.25)], ["a"])
        assert any("Dashed: chance." in text for text in found)

    def test_footnotes_are_kept(self, tmp_path: Path) -> None:
        found = self.draw(tmp_path, [self.row("a", notes=[1])], ["a"], ["limit 3. Do not compare."])
        assert "0.500 ± 0.020 [1]" in found
        assert "[1] limit 3. Do not compare." in found

    def test_an_empty_table_is_said_to_be(self, tmp_path: Path) -> None:
        assert "Nothing was measured." in self.draw(tmp_path, [], [])

    def test_twelve_tasks_of_four_models_fit_a_window(self, tmp_path: Path) -> None:
        models = ["miquplus-midnight-70b", "Midnight-Rose-70B-v2.0.3", "miqu-1-70b-sf", "llama"]
        rows = [self.row(model, f"task{i}/acc") for i in range(12) for model in models]
        self.draw(tmp_path, rows, models, merged=models[0])
        width, height = size(tmp_path / "x.svg")
        assert width == pytest.approx(WIDTH)
        assert height < 1.1 * HEIGHT


class TestCommands:
    """The command lines that the rules call, each twice under other hash seeds."""

    @pytest.fixture
    def build(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.chdir(tmp_path)
        plan = large_plan(tmp_path, llama_70b(12), files=4)
        return plan.builds[NAME]

    def run(self, script: Any, *arguments: Any, seed: Any = "0") -> None:
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
            env={**os.environ, "PYTHONHASHSEED": seed, "MPLBACKEND": "module://missing"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise UserError(done.stderr)

    def same_twice(self, script: Any, *arguments: Any, output: Any = "out") -> Any:
        sums = []
        for seed in ("1", "2"):
            self.run(script, *arguments, "--output", output, seed=seed)
            sums.append(hashlib.sha256(Path(output).read_bytes()).hexdigest())
        assert sums[0] == sums[1]
        return Path(output).read_text(encoding="utf-8")

    def test_coefficients(self, build: Build, tmp_path: Path) -> None:
        svg = self.same_twice("plot_coefficients.py", "--build", build.digest, output="a/b.svg")
        ElementTree.fromstring(svg)
        assert str(tmp_path) not in svg
        assert not re.search(r"\d{4}-\d\d-\d\dT", svg)

    def test_plan(self, build: Build) -> None:
        (plan,) = Path(".shardmerge/plans").iterdir()
        page = self.same_twice("tabulate_plan.py", "--plan", plan, "--name", NAME, output="p.html")
        assert page.startswith("<!doctype html>")
        with pytest.raises(UserError, match="builds no model 'nope'"):
            self.run("tabulate_plan.py", "--plan", plan, "--name", "nope", "--output", "q.html")
        assert not Path("q.html").exists()

    def test_summary(self, build: Build) -> None:
        (plan,) = Path(".shardmerge/plans").iterdir()
        told = ("--plan", plan, "--folder", "r/x", "--verified=", "--loaded=gone.json", "--table=")
        page = self.same_twice("summarize_model.py", *told, "--name", NAME, output="s.html")
        assert "Not verified yet" in page and "r/x/model" in page
        with pytest.raises(UserError, match="builds no model 'nope'"):
            self.run("summarize_model.py", *told, "--name", "nope", "--output", "q.html")
        assert not Path("q.html").exists()

    def test_timings(self, build: Build) -> None:
        record = written(TestTimings().record())
        Path("model-00001-of-00002.json").write_text(json.dumps(record))
        self.same_twice("plot_timings.py", "--records", "model-00001-of-00002.json", output="t.svg")
        assert "model-00001-of-00002" in texts(Path("t.svg"))

    def test_benchmarks(self, build: Build) -> None:
        table = {"models": ["a"], "cells": [TestBenchmarks().row("a")], "footnotes": []}
        Path("table.json").write_text(json.dumps(table))
        self.same_twice("plot_benchmarks.py", "--table", "table.json", output="b.svg")

    def test_norms_without_measurements_say_why(self, build: Build) -> None:
        norms = ("plot_norms.py", "--build", build.digest, "--table", "n.tsv")
        self.same_twice(*norms, output="n.svg")
        assert any("tell no norms" in text for text in texts(Path("n.svg")))
        assert Path("n.tsv").read_text().startswith("tensor\tlayer\tmodule\ttask_vector\t")
        assert len(Path("n.tsv").read_text().split("\n")) == 2
