"""Snakemake's report of a run that was stopped on the way."""

from __future__ import annotations

from pathlib import Path

from helpers.workflow import DEMO_NAME, demo


def test_what_is_there_is_reported_and_what_is_lacking_is_told(tmp_path: Path) -> None:
    project = demo(tmp_path / "demo")
    results = f"results/{DEMO_NAME}"
    project.build(
        f"{results}/model/model-00001-of-00006.safetensors", f"{results}/report/coefficients.svg"
    )
    before = project.snapshot()
    done = project.run("--report", "report.html")
    assert done.returncode == 0, done.stdout
    lacking = (
        "5 of 6 shards to be written; verification; checksums; "
        "the test that transformers loads it; benchmarks; "
        "pages of this report: summary, plan, norms, distances, timings, benchmarks"
    )
    assert lacking in done.stdout
    assert "Missing metadata" not in done.stdout
    page = (project.folder / "report.html").read_text(encoding="utf-8")
    assert "run that is not whole" in page and lacking in page
    assert "Not verified yet. Not loaded by transformers yet." in page
    assert "coefficients.svg" in page and "summary.html" not in page
    del page
    (project.folder / "report.html").unlink()
    assert project.snapshot() == before
