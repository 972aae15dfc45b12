"""The demo as shipped, from recipes to benchmark tables, and its negative control."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

from helpers.workflow import DEMO, DEMO_NAME, Once, Project, demo, scores, sha256
from shardmerge.package.finished import check_finished

pytestmark = pytest.mark.slow

NAME = DEMO_NAME
DONOR = "miquplus-midnight-tiny-donor"
ABLATIONS = ("miquplus-midnight-tiny-all-layers", "miquplus-midnight-tiny-no-filters")
EVERYTHING = ("all",)


@pytest.fixture(scope="module")
def built(once: Once) -> Project:
    """The demo, built and measured."""
    folder = once("demo", lambda folder: demo(folder).build(*EVERYTHING))
    project = Project(folder)
    project.recipe = folder / "config" / "recipes" / f"{NAME}.yaml"
    return project


class TestDemo:
    def test_merge_has_both_skills(self, built: Project) -> None:
        found = scores(built)
        assert found[NAME, "demo_B"] >= 0.7
        assert found["miqu-tiny", "demo_B"] <= 0.6
        assert found[NAME, "demo_C"] >= 0.95
        assert found[NAME, "demo_copy"] >= 0.95

    def test_checksums_verify(self, built: Project) -> None:
        folder = built.folder / "results" / NAME / "model"
        done = subprocess.run(
            ["sha256sum", "--check", "--strict", "SHA256SUMS"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").open()}
        assert check_finished(folder).wrong == ()
        present = {p.name for p in folder.iterdir()} - {"SHA256SUMS"}
        assert {name.strip() for name in listed} == present

    def test_its_distance_to_the_recipient_is_measured(self, built: Project) -> None:
        """Its outer layers are copies, and it has one task vector, which cannot interfere."""
        report = built.folder / "results" / NAME / "report"
        assert (report / "distances.svg").is_file()
        assert not (report / "directions.svg").exists() and not (report / "kept.svg").exists()
        with (report / "interference.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["module"] == "(all)"]
        assert {row["measure"] for row in rows} == {"distance"}
        distances = {row["layer"]: float(row["value"]) for row in rows}
        assert distances["0"] == distances["11"] == distances[""] == 0
        assert 0 < distances["5"] < 0.1
        assert "distance to a parent" in (report / "summary.html").read_text(encoding="utf-8")

    def test_second_run_does_nothing(self, built: Project) -> None:
        assert built.pending(*EVERYTHING) == []
        before = built.snapshot()
        built.build(*EVERYTHING)
        assert built.snapshot() == before

    def test_all_models_are_compared_on_the_same_questions(self, built: Project) -> None:
        folder = built.folder / "results" / "benchmarks"
        data = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        found = {(c["model"], c["label"]): c for c in data["comparisons"]}
        merged = found[NAME, "demo_B/acc"]
        assert (merged["reference"], merged["test"]) == ("miqu-tiny", "mcnemar")
        assert (merged["verdict"], merged["questions"]) == ("better", 200)
        flips = (folder / "flips.csv").read_text(encoding="utf-8").splitlines()
        changed = sum(c["up"] + c["down"] for c in data["comparisons"])
        assert len(flips) == 1 + changed
        told = f"{NAME}: better than miqu-tiny on demo_B/acc"
        assert told in (folder / "compare.html").read_text(encoding="utf-8")
        summary = built.folder / "results" / NAME / "report" / "summary.html"
        assert "won, 0 lost of 200" in summary.read_text(encoding="utf-8")

    def test_models_are_whole_without_benchmarks(self, tmp_path: Path) -> None:
        done = demo(tmp_path / "pristine").run("-n", "models")
        assert done.returncode == 0, done.stdout
        jobs = set(re.findall(r"^(\w+) +\d+$", done.stdout, re.MULTILINE))
        assert {"write_card", "write_checksums", "write_provenance", "verify_model"} <= jobs
        assert jobs & {"run_task", "run_tasks", "collect_benchmark", "load_model"} == set()

    def test_models_leave_the_card_its_benchmarks(self, built: Project) -> None:
        card = built.folder / "results" / NAME / "model" / "README.md"
        assert "## Benchmarks" in card.read_text(encoding="utf-8")
        assert built.pending("models") == []

    def test_a_misspelt_task_is_told_before_anything_runs(self, tmp_path: Path) -> None:
        benchmark = {"tasks": ["demo_BB"], "include_path": "config/tasks/demo"}
        done = demo(tmp_path / "misspelt", benchmark=benchmark).run("-n", "models")
        assert done.returncode == 1
        assert "there is no task 'demo_BB'" in done.stdout
        assert "Did you mean 'demo_B'?" in done.stdout

    def test_nothing_unfinished_is_left(self, built: Project) -> None:
        assert built.parts() == []

    def test_no_donor_was_written(self, built: Project) -> None:
        folders = {p.name for p in (built.folder / "results").iterdir()}
        assert folders == {NAME, "benchmarks"}

    def test_sources_are_untouched(self, built: Project) -> None:
        """Their lock, made before the build, still holds when every file is read again."""
        lock = json.loads((built.recipe.with_suffix(".lock.json")).read_text(encoding="utf-8"))
        for name, source in lock["sources"].items():
            for file, locked in source["files"].items():
                assert locked["sha256"] == sha256(built.folder / name / file), file


class TestNegativeControl:
    def test_a_skill_that_the_base_never_saw_does_not_come_over(self, tmp_path: Path) -> None:
        benchmark = {
            "models": ["merged", f"{DEMO}/stranger-tiny"],
            "tasks": ["demo_D", "demo_C"],
            "include_path": "config/tasks/demo",
            "batch_size": 64,
            "per": "model",
        }
        project = demo(tmp_path / "control", benchmark=benchmark)
        text = project.recipe.read_text(encoding="utf-8")
        assert "midnight-tiny\n" in text
        donor = f"{DEMO}/midnight-tiny\n"
        project.recipe.write_text(text.replace(donor, f"{DEMO}/stranger-tiny\n"))
        project.build("benchmarks")
        found = scores(project)
        assert found["stranger-tiny", "demo_D"] >= 0.95
        assert found[NAME, "demo_D"] <= 0.4
        assert found[NAME, "demo_C"] >= 0.95


class TestAblations:
    @pytest.fixture(scope="class")
    def projects(self, once: Once) -> dict[str, Project]:
        """The ablations, one more, and their donor with every way to treat task vectors."""

        def make(folder: Path) -> None:
            project = demo(
                folder,
                f"{NAME}-ablations.yaml",
                stages=["final", DONOR],
                deltas=folder.name,
                benchmark={"tasks": []},
                resources={"merge_threads": 1},
            )
            # Four builds read the task vectors of the middle layers: files of them then pay.
            documents = project.documents()
            project.write_documents([*documents, documents[-1] | {"name": "one-more"}])
            project.build()

        return {deltas: Project(once(deltas, make)) for deltas in ("fuse", "store", "auto")}

    def test_all_stages_have_the_same_bytes(self, projects: dict[str, Project]) -> None:
        for name in (DONOR, *ABLATIONS):
            expected = projects["fuse"].shards(name)
            assert len(expected) > 1
            assert projects["store"].shards(name) == expected
            assert projects["auto"].shards(name) == expected

    def test_shared_task_vectors_are_stored_unless_fused(
        self, projects: dict[str, Project]
    ) -> None:
        records = {
            deltas: len(list((p.folder / "results").glob("deltas/*/records/*.json")))
            for deltas, p in projects.items()
        }
        assert records["fuse"] == 0
        assert records["store"] > 0 and records["auto"] > 0

    def test_only_what_store_made_is_kept(self, projects: dict[str, Project]) -> None:
        kept = {
            deltas: len(list((p.folder / "results").glob("deltas/*/*.safetensors")))
            for deltas, p in projects.items()
        }
        assert kept["store"] > 0
        assert kept["fuse"] == kept["auto"] == 0
