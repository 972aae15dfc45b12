"""Measurements: what is measured, and what becomes of the figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tools.bench import builds, page, plans

PAGE = """# P

<!-- figures: begin (written by tools/bench) -->
old
<!-- figures: end -->
rest
"""
OURS = {"exit": 5.0, "peak_mb": 200.0, "job_peak_mb": 250.0, "start": 1.0, "read": 1.0}
OURS |= {"compute": 1.0, "write": 1.0, "hash": 1.0}
OTHER = {"exit": 50.0, "peak_mb": 5000.0}
RESULTS = {
    "builds": {
        "2GB": {
            "fused": [OURS | {"seconds": s, "merge": s / 2} for s in (4.0, 5.0, 10.0)],
            "cp -r": [OTHER | {"seconds": s} for s in (4.0, 5.0, 6.0)],
            "mergekit-multi": [OTHER | {"seconds": s} for s in (20.0, 40.0, 100.0)],
            "mergekit-multi --help": [OTHER | {"seconds": s} for s in (10.0, 10.0, 10.0)],
        }
    },
    "plans": {
        "70B": {"tensors": 723, "files": 15, "plan": 1, "again": 0.5, "job": 0.1}
        | {"dry run": 3, "no-op": 2}
    },
}


class TestPage:
    def test_ratios_are_medians_of_the_rounds(self) -> None:
        assert page.ratio([20, 40, 100], [4, 5, 10]) == 8
        text = page.with_figures(PAGE, RESULTS)
        assert "| fused | 5.0 | 4.0 - 10.0 | 8.0 | 250 |" in text
        # 10/2, 30/2.5, 90/5: the start does not count; then 4/2, 5/2.5, 6/5
        assert "| fused | 2.5 | 12.0 | 2.0 |" in text
        assert "| 70B | 723 | 15 | 1.00 | 0.50 | 0.10 | 3.00 | 2.00 |" in text

    def test_the_rest_stays(self) -> None:
        text = page.with_figures(PAGE, RESULTS)
        assert text.startswith("# P\n")
        assert text.endswith("rest\n")
        assert "old" not in text
        assert page.with_figures(text, RESULTS) == text

    def test_missing_marker(self) -> None:
        with pytest.raises(ValueError, match="marker"):
            page.with_figures("# P\n", RESULTS)

    def test_plot(self, tmp_path: Path) -> None:
        page.draw(RESULTS, tmp_path / "plot.svg")
        assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


class TestMeasure:
    def run(self, folder: Path, code: str, output: str) -> builds.Figures:
        command = [sys.executable, "-c", code]
        return builds.measure(folder, builds.Contestant(command, output, (output,)))

    def test_ends_with_the_last_byte(self, tmp_path: Path) -> None:
        code = "import pathlib, time; p = pathlib.Path('out'); p.mkdir(); "
        code += "(p / 'a').write_text('x'); time.sleep(0.5)"
        found = self.run(tmp_path, code, "out")
        assert found["seconds"] <= found["exit"] - 0.4
        assert found["peak_mb"] > 1
        assert not (tmp_path / "out").exists()

    def test_merge_jobs_are_measured_by_their_records(self, tmp_path: Path) -> None:
        seconds = {"start": 0.1, "read": 0.2, "total": 0.5}
        record = {"seconds": seconds, "peak_memory": 3 << 20, "bytes_read": 7, "bytes_written": 5}
        code = "import pathlib; p = pathlib.Path('results/n/records'); p.mkdir(parents=True)\n"
        code += f"for k in '12': (p / (k + '.json')).write_text({json.dumps(record)!r})"
        found = self.run(tmp_path, code, "results")
        assert 0.5 <= found["merge"] < 5
        assert (found["job_peak_mb"], found["bytes_read"], found["read"]) == (3, 14, 0.4)

    def test_a_failure_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="failed"):
            self.run(tmp_path, "raise SystemExit(3)", "out")


class TestPlans:
    @pytest.mark.slow
    def test_the_model_that_nothing_is_to_be_done_for_looks_finished(self, tmp_path: Path) -> None:
        """Else ``compare`` ends with an error, or Snakemake fails to fetch what is on no Hub."""
        seconds = plans.compare(tmp_path, "70B", print)
        assert seconds["files"] == 15
        assert min(seconds.values()) > 0
        used = sum(p.lstat().st_blocks * 512 for p in tmp_path.rglob("*") if p.is_file())
        assert used < 20e6 < 400e9 < sum(p.stat().st_size for p in tmp_path.rglob("*"))
