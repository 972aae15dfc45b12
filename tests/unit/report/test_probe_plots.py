"""Plots of what probes found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardmerge.report.probe_plots import draw_divergences, draw_needles, needle_shares


def cell(model: str, label: str, value: float, stderr: float | None = None) -> dict[str, Any]:
    return {"model": model, "label": label, "value": value, "stderr": stderr}


def test_divergences_are_drawn_for_zero_and_for_pairs_that_were_not_compared(
    tmp_path: Path,
) -> None:
    cells = [cell("m", f"kl_a/{name}", 0.0, 0.0) for name in ("median", "mean", "p95", "p99")]
    cells += [cell("b", f"kl_a/{name}", value) for name, value in (("median", 0.0), ("mean", 0.2))]
    cells += [cell("m", "demo/acc", 0.5)]
    table = {"models": ["m", "a", "b"], "cells": cells}
    for run in ("x.svg", "y.svg"):
        draw_divergences(table, tmp_path / run, "m")
    assert (tmp_path / "x.svg").read_bytes() == (tmp_path / "y.svg").read_bytes()
    draw_divergences({"models": ["m"], "cells": []}, tmp_path / "none.svg")
    assert (tmp_path / "none.svg").stat().st_size < (tmp_path / "x.svg").stat().st_size


def test_needles_are_counted_by_length_and_depth(tmp_path: Path) -> None:
    rows = [
        {"doc": {"length": length, "depth": depth}, "acc": acc}
        for length, depth, acc in ((64, 0.5, 1.0), (64, 0.5, 0.0), (32, 1.0, 1.0))
    ]
    found = needle_shares(rows)
    assert found == {(32, 1.0): (1, 1), (64, 0.5): (1, 2)}
    draw_needles({"m": found, "other": {(32, 0.0): (0, 1)}}, tmp_path / "x.svg", "m")
    draw_needles({"m": {}}, tmp_path / "none.svg")
    assert (tmp_path / "none.svg").stat().st_size < (tmp_path / "x.svg").stat().st_size
