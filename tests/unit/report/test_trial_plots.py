"""Pictures of trials, and the page to explore them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.benchmark.trials import Measurement, Trial, TrialSet
from shardmerge.report import trial_curves
from shardmerge.report import trials_page as pages
from shardmerge.report.canvas import WIDTH
from shardmerge.report.trial_curves import axis_values, draw_curves, reach
from shardmerge.report.trial_grids import draw_parallel, draw_trial_grid
from shardmerge.report.trial_pareto import draw_pareto
from shardmerge.report.trials_page import trials_page

HOSTILE = "</script><script>alert(1)</script><b>&\"'$\\frac$"


def measured(value: float) -> Measurement:
    stderr = math.sqrt(value * (1 - value) / 200) if 0 <= value <= 1 else None
    return Measurement(value=value, stderr=stderr, questions=200)


def sweep(
    *, methods: tuple[Any, ...] = ("ties",), name: str = "demo", up: bool = True, statuses: Any = ()
) -> TrialSet:
    rows = [
        Trial(
            name=f"{name}-{w}-{method}",
            variables={"w": w / 10, "method": method},
            metrics={"B": measured(w / 10), "C": measured(1 - w / 11)},
            status="done",
        )
        for w in range(1, 10)
        for method in methods
    ]
    rows += [Trial(name=s, variables={"w": 0.95}, metrics={}, status=s) for s in statuses]
    return TrialSet(name=name, objectives={"B": True, "C": up}, trials=tuple(rows))


PLOTS: dict[str, Callable[[TrialSet, Path], None]] = {
    "curves": lambda trials, path: draw_curves(trials, "w", path),
    "kinds": lambda trials, path: draw_curves(trials, "method", path),
    "pareto": draw_pareto,
    "grid": lambda trials, path: draw_trial_grid(trials, ("w", "method"), path),
    "parallel": draw_parallel,
}


@pytest.mark.parametrize("plot", PLOTS)
class TestPlots:
    def drawn(self, plot: str, trials: TrialSet, folder: Path) -> str:
        path = folder / "plot.svg"
        PLOTS[plot](trials, path)
        return path.read_text()

    def test_are_the_same_every_time(self, plot: str, tmp_path: Path) -> None:
        trials = sweep(methods=("ties", "linear"))
        first, again = (self.drawn(plot, trials, tmp_path) for _ in range(2))
        assert first == again

    def test_bear_any_text_and_number_of_values(self, plot: str, tmp_path: Path) -> None:
        kinds = (HOSTILE, "ties", True, *map(str, range(9)))
        text = self.drawn(plot, sweep(methods=kinds, name=HOSTILE, up=False), tmp_path)
        assert "<script" not in text

    @pytest.mark.parametrize("statuses", [(), ("planned", "failed", "stopped")])
    def test_of_nothing_say_so(self, plot: str, statuses: Any, tmp_path: Path) -> None:
        rows = sweep(statuses=statuses).trials[9:]
        none = TrialSet(name="x", objectives={"B": True, "C": True}, trials=rows)
        assert "<svg" in self.drawn(plot, none, tmp_path)

    def test_of_one_trial(self, plot: str, tmp_path: Path) -> None:
        one = TrialSet(name="x", objectives={"B": True, "C": True}, trials=sweep().trials[:1])
        assert "<svg" in self.drawn(plot, one, tmp_path)

    def test_of_values_that_are_infinite_or_without_errors(self, plot: str, tmp_path: Path) -> None:
        rows = [
            Trial(
                name=f"{v}",
                variables={"w": 1.0, "method": "a"},
                status="done",
                metrics={"B": Measurement(value=v), "C": Measurement(value=3.0)},
            )
            for v in (math.inf, math.nan, 12.0)
        ]
        trials = TrialSet(name="x", objectives={"B": False, "C": True}, trials=tuple(rows))
        assert "<svg" in self.drawn(plot, trials, tmp_path)


class Kept:
    """Gives the figure that is drawn, in place of a file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.figure: Any = None
        monkeypatch.setattr(trial_curves, "figure", self._figure)

    @contextmanager
    def _figure(self, output: Any, height: float) -> Iterator[Any]:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(WIDTH, height))
        FigureCanvasAgg(self.figure)
        yield self.figure
        self.figure.canvas.draw()


class TestCurves:
    @pytest.mark.parametrize("count", [2, 4, 6])
    @pytest.mark.parametrize("word", ["a", "the_name_of_a_long_method"])
    def test_names_of_lines_stand_below_the_title(
        self, count: int, word: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = Kept(monkeypatch)
        draw_curves(sweep(methods=tuple(f"{word}{i}" for i in range(count))), "w", "none.svg")
        for axes in kept.figure.axes:
            title = axes._left_title.get_window_extent()
            names = axes.get_legend().get_window_extent()
            assert names.y1 <= title.y0 + 1
            assert names.x1 <= axes.get_window_extent().x1 + 1
            assert title.y1 < kept.figure.texts[1].get_window_extent().y0

    def test_what_breaks_a_bound_gets_no_ring(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = Kept(monkeypatch)
        found = sweep()
        rows = tuple(replace(t, allowed=t.variables["w"] < 0.5) for t in found.trials)
        draw_curves(replace(found, trials=rows, objectives={"B": True}), "w", "none.svg")
        rings = [line for line in kept.figure.axes[0].lines if line.get_markersize() == 11]
        assert [tuple(ring.get_xdata()) for ring in rings] == [(0.4,)]


class TestAxes:
    def test_numbers_stand_where_they_are_and_others_in_a_row(self) -> None:
        assert axis_values([0.5, 2])[0] == {0.5: 0.5, 2: 2.0}
        assert axis_values(["b", "a"]) == ({"b": 0.0, "a": 1.0}, [0.0, 1.0], ["b", "a"])

    def test_intervals_of_shares_end_at_one(self) -> None:
        below, above = reach([measured(1.0), Measurement(value=5.0)])
        assert above == [0.0, 0.0] and below[0] == pytest.approx(1 - 200 / (200 + 1.959964**2))
        assert below[1] == 0.0


class TestPage:
    def test_needs_nothing_from_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = trials_page(sweep(methods=("ties", "linear")))
        assert not re.search(r"<(script|link|img)[^>]*\b(src|href)=", text)
        assert len(text) > 1_000_000  # plotly.js is in it
        assert text == trials_page(sweep(methods=("ties", "linear")))

    def test_text_of_strangers_ends_no_element(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "_plotly", lambda: "")
        text = trials_page(sweep(methods=(HOSTILE, "ties"), name=HOSTILE))
        assert text.count("</script>") == 4 and "alert(1)</script>" not in text
        for found in re.findall(r"<script type=\"application/json\"[^>]*>(.*?)</script>", text):
            shown = json.dumps(json.loads(found), ensure_ascii=False)
            assert "<script" not in shown  # plotly reads a little HTML in its texts

    def test_tells_what_was_not_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "_plotly", lambda: "")
        text = trials_page(sweep(statuses=("failed", "failed", "stopped")))
        assert "2 trials failed, 1 trial stopped early." in text
        empty = TrialSet(name="x", objectives={"B": True}, trials=())
        assert "<div" not in trials_page(empty)

    def test_what_breaks_a_bound_is_not_called_best(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "_plotly", lambda: "")
        found = sweep()
        rows = tuple(replace(t, allowed=False) for t in found.trials)
        text = trials_page(replace(found, trials=rows))
        assert "9 trials excluded." in text
        assert ">best<" not in text and ">excluded<" in text

    def test_without_plotly_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> Any:
            raise ModuleNotFoundError(name)

        monkeypatch.setattr(pages, "files", missing)
        with pytest.raises(UserError, match=r"(?s)plotly is not installed.*make env"):
            trials_page(sweep())
