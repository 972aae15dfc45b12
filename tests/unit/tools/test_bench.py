"""Measurements: what is measured, and what becomes of the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench import bound, builds, methods, page, phases, plans, sampled

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
        assert "trivial" not in text
        assert "| 70B | 723 | 15 | 1.00 | 0.50 | 0.10 | 3.00 | 2.00 |" in text

    def test_what_no_build_can_be_faster_than(self, tmp_path: Path) -> None:
        alone = {builds.BYTES: (2.0, 3.0, 9.0), builds.SNAKEMAKE: (1.0, 2.0, 1.0)}
        parts = {name: [OTHER | {"seconds": s} for s in found] for name, found in alone.items()}
        results = RESULTS | {"builds": {"2GB": RESULTS["builds"]["2GB"] | parts}}
        text = page.with_figures(PAGE, results)
        assert "alone, two shards at a time, took 3.0 s" in text
        # 20/3, 40/5, 100/10
        assert "1.0 s. One after the other they are 8.0 times as fast as mergekit-multi." in text
        assert f"| {builds.BYTES} |" not in text
        page.draw(results, tmp_path / "plot.svg")
        assert builds.BYTES not in (tmp_path / "plot.svg").read_text()

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


class TestBound:
    @pytest.mark.parametrize("size", [5, 1 << 20, (3 << 20) + 7])
    @pytest.mark.parametrize("back", [(), ("--back",)])
    def test_moves_whole_models(self, tmp_path: Path, size: int, back: tuple[str, ...]) -> None:
        for model in "ab":
            (tmp_path / model).mkdir()
            for shard in "12":
                (tmp_path / model / f"{shard}.safetensors").write_bytes(os.urandom(size))
        command = [sys.executable, bound.__file__, "out", str(tmp_path / "a"), str(tmp_path / "b")]
        subprocess.run([*command, *back], cwd=tmp_path, check=True)
        for shard in "12":
            made, source = (tmp_path / m / f"{shard}.safetensors" for m in ("out", "a"))
            assert made.read_bytes() == source.read_bytes()

    def test_a_failure_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/1.safetensors").write_bytes(b"12345")
        (tmp_path / "b").mkdir()
        command = [sys.executable, bound.__file__, "out", str(tmp_path / "a"), str(tmp_path / "b")]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode


class TestPlans:
    @pytest.mark.slow
    def test_the_model_that_nothing_is_to_be_done_for_looks_finished(self, tmp_path: Path) -> None:
        """Else ``compare`` ends with an error, or Snakemake fails to fetch what is on no Hub."""
        seconds = plans.compare(tmp_path, "70B", print)
        assert seconds["files"] == 15
        assert min(seconds.values()) > 0
        used = sum(p.lstat().st_blocks * 512 for p in tmp_path.rglob("*") if p.is_file())
        assert used < 20e6 < 400e9 < sum(p.stat().st_size for p in tmp_path.rglob("*"))


class TestMethods:
    def test_those_that_read_a_text_are_left_out(self) -> None:
        names = methods.measurable()
        assert {"linear", "della", "metagpt"} < set(names)
        assert not {"fisher", "regmean"} & set(names)

    def rows(self, merge: float) -> dict[str, list[builds.Figures]]:
        own = {"seconds": 8.0, "exit": 9.0, "merge": merge, "job_peak_mb": 115.0}
        own |= {"bytes_read": 2e9 * merge, "bytes_written": 1e9}
        theirs = {"seconds": 26.0, "exit": 26.0, "peak_mb": 5000.0}
        start = {"seconds": 6.0, "exit": 6.0, "peak_mb": 300.0}
        return {
            methods.OURS: [own],
            methods.OURS_AS_THEIRS: [own | {"seconds": 9.0, "merge": 4.0}],
            methods.MERGEKIT: [theirs],
            methods.START: [start],
            methods.BOUND: [{"seconds": 1.5, "exit": 1.6, "peak_mb": 40.0}],
        }

    def test_table_tells_builds_and_jobs_apart(self) -> None:
        rows = {name: self.rows(2.0) for name in (methods.OF_TWO, "slerp", "metagpt")}
        rows["metagpt"] = {methods.OURS: rows["metagpt"][methods.OURS]}
        text = methods.methods_table(rows)
        row = "| `slerp` | 2 | 8.0 | 2.0 | 1.5 | 115 | 9.0 | 4.0 | 26.0 | 5,000 | 1, 1, 1 "
        assert row + "| 3.2 | 2.9 | 10.0 | 5.0 | 1.0 |" in text
        assert "| `metagpt` | 3 | 8.0 | 2.0 |  | 115 |" in text

    def test_what_is_measured_is_not_run_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran: list[str] = []
        contestants = {name: builds.Contestant([name], None, ()) for name in ("one", "other")}
        monkeypatch.setattr(methods, "prepare", lambda *_: contestants)
        monkeypatch.setattr(methods, "warm", lambda models: None)
        monkeypatch.setattr(methods, "_row", lambda name, rows: [name])
        monkeypatch.setattr(methods, "measure", lambda _, c, cores: ran.append(c.command[0]) or {})
        rows: methods.Measured = {"slerp": {"one": [{}, {}], "other": [{}]}}
        kept: list[int] = []
        methods.compare(tmp_path, "small", ["slerp"], 2, rows, lambda: kept.append(len(ran)), print)
        assert ran == ["other"]
        assert kept == [1]
        assert len(rows["slerp"]["other"]) == 2

    def test_slow_ones_run_less_often(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        contestants = {name: builds.Contestant([name], None, ()) for name in ("fast", "slow")}
        monkeypatch.setattr(methods, "prepare", lambda *_: contestants)
        monkeypatch.setattr(methods, "warm", lambda models: None)
        monkeypatch.setattr(methods, "_row", lambda name, rows: [name])
        seconds = {"fast": 5.0, "slow": 90.0}
        monkeypatch.setattr(methods, "measure", lambda _, c, cores: {"exit": seconds[c.command[0]]})
        rows: methods.Measured = {}
        methods.compare(tmp_path, "small", ["slerp"], 3, rows, lambda: None, print, slow=2)
        assert {label: len(runs) for label, runs in rows["slerp"].items()} == {"fast": 3, "slow": 2}

    def test_ours_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        labels = (methods.OURS, methods.BOUND, methods.MERGEKIT)
        contestants = {name: builds.Contestant([name], None, ()) for name in labels}
        monkeypatch.setattr(methods, "prepare", lambda *_: contestants)
        monkeypatch.setattr(methods, "warm", lambda models: None)
        monkeypatch.setattr(methods, "_row", lambda name, rows: [name])
        monkeypatch.setattr(methods, "measure", lambda *_: {"exit": 1.0})
        rows: methods.Measured = {}
        methods.compare(tmp_path, "small", ["slerp"], 2, rows, lambda: None, print, alone=True)
        ran = {label: len(runs) for label, runs in rows["slerp"].items()}
        assert ran == {methods.OURS: 2, methods.BOUND: 2}
        both = methods.estimate(["13GB"], ["slerp"], 1, {})
        assert methods.estimate(["13GB"], ["slerp"], 1, {}, alone=True) < both / 2

    def test_an_accelerator_is_measured_beside_the_cores(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(methods, "make_model", lambda *_: None)
        place = methods.Place(16, "cuda:1")
        found = methods.prepare(tmp_path, "small", "ties", place)
        ours = {methods.OURS: "cpu", "shardmerge, cuda:1": "cuda:1"}
        assert {*ours, methods.BOUND} <= found.keys()
        assert methods.OURS_AS_THEIRS not in found and methods.MERGEKIT not in found
        for label, device in ours.items():
            command = found[label].command
            settings = json.loads((tmp_path / command[-1]).read_text())
            assert settings.get("device", "cpu") == device
            assert command[command.index("--cores") + 1] == "16"
        if theirs := found.get(methods.MERGEKIT_CARD):
            assert theirs.command[-3:] == ["--num-threads", "16", "--cuda"]
        rows = {"ties": {methods.OURS: [{"seconds": 2.0, "merge": 1.0}]}}
        rows["ties"]["shardmerge, cuda:1"] = [{"seconds": 3.0, "merge": 1.5}]
        assert "| `ties` | 3 | 2.0 | 1.0 | 3.0 | 1.5 |  |" in methods.card_table(rows, place)

    def test_estimate_counts_what_is_left(self) -> None:
        rows = {"2GB": {"slerp": self.rows(2.0)}}
        assert methods.estimate(["2GB"], ["slerp"], 1, rows) == 0
        assert methods.estimate(["2GB"], ["slerp"], 3, rows) == 2 * (9.0 + 9.0 + 26.0)
        assert methods.estimate(["13GB"], ["slerp"], 1, {}) > 13 * 60

    def test_plot(self, tmp_path: Path) -> None:
        rows = {"400MB": {"slerp": self.rows(1.0)}, "2GB": {"slerp": self.rows(5.0)}}
        methods.draw(rows, tmp_path / "methods.svg")
        assert (tmp_path / "methods.svg").read_text().startswith("<?xml")

    def test_sizes(self) -> None:
        assert 12 < methods.gigabytes("13GB") < 14
        assert 0.05 < methods.gigabytes("100MB") < 0.15


class TestPhases:
    def test_innermost_call_decides(self) -> None:
        namespace: dict = {"look": lambda: sampled._phase(sys._getframe(1))}
        code = "def schedule(): return decide()\ndef decide(): return look()\n"
        exec(compile(code, "/x/shardmerge/plan/decide.py", "exec"), namespace)
        assert namespace["schedule"]() == "plan"
        assert sampled._phase(None) == "other"

    def test_table(self) -> None:
        runs = [{"cpu": {"imports": s, "jobs": 1.0}, "wall": {"imports": s}} for s in (1.0, 3.0)]
        text = phases.phases_table({"demo": runs}, "cpu")
        assert "| imports | 2.00 |" in text
        assert "| jobs | 1.00 |" in text
        assert "jobs" not in phases.phases_table({"demo": runs}, "wall")
