"""What the workflow is asked to make, and what waits for what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.plan.plan import NO_PLAN, Build
from shardmerge.recipe.settings import load_settings
from shardmerge.run.targets import Targets


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    found = Targets(load_settings({"recipes": ["r"]}), NO_PLAN)
    build = Build("a", "digest", (), {})
    found.plan = replace(NO_PLAN, builds={"a": build})
    return found


class TestSummary:
    def test_everything_waits_for_loading_and_the_report_alone_takes_what_is_there(
        self, targets: Targets
    ) -> None:
        (path,) = targets.loaded()
        assert targets.loading("a", waits=True) == [path]
        assert targets.loading("a", waits=False) == []
        Path(path).parent.mkdir(parents=True)
        Path(path).write_text("{}")
        assert targets.loading("a", waits=False) == [path]

    def test_is_the_first_of_the_reports(self, targets: Targets) -> None:
        assert targets.reports()[0] == "results/a/report/summary.html"
        assert not any("benchmarks" in path for path in targets.reports())
        shown = ("directions", "signs", "kept")
        assert not any(word in path for word in shown for path in targets.reports())

    def test_statistics_are_shown_where_there_are_some(self, targets: Targets) -> None:
        shown = {
            (): {"distances"},
            ("pairs",): {"distances", "directions", "signs"},
            ("kept", "pairs"): {"distances", "directions", "signs", "kept"},
        }
        for statistics, plots in shown.items():
            build = Build("a", "digest", (), {}, statistics=statistics)
            targets.plan = replace(NO_PLAN, builds={"a": build})
            found = {Path(path).stem for path in targets.reports()}
            assert found & shown["kept", "pairs"] == plots

    def test_needs_no_table_where_nothing_is_measured(self, targets: Targets) -> None:
        assert targets.table("a") == targets.tables() == []
        targets.measured = {"a": None}
        assert targets.table("a") == targets.tables() == ["results/a/benchmarks/table.json"]


class TestComparison:
    def test_is_made_where_something_is_measured(self, targets: Targets) -> None:
        assert targets.comparison() == [] and targets.reference is None
        targets.measured = {"a": None}
        assert targets.comparison() == ["results/benchmarks/table.json"]
        assert targets.reports()[-1] == "results/benchmarks/compare.html"

    def test_a_reference_that_is_not_measured_is_an_error_with_a_guess(
        self, targets: Targets
    ) -> None:
        targets.settings = load_settings({"recipes": ["r"], "benchmark": {"reference": "bas"}})
        targets.measured = {"base": None, "other": None}
        with pytest.raises(UserError, match=r"(?s)'bas' is no model that is measured.*'base'"):
            targets._reference()
        targets.settings = load_settings({"recipes": ["r"], "benchmark": {"reference": "other"}})
        assert targets._reference() == "other"


class TestBenchmarks:
    def made(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **benchmark: Any) -> Targets:
        monkeypatch.chdir(tmp_path)
        plan = replace(NO_PLAN, builds={name: Build(name, name, (), {}) for name in ("a", "b")})
        return Targets(load_settings({"recipes": ["r"], "benchmark": benchmark}), plan)

    @pytest.mark.parametrize("turned", [False, True])
    def test_what_is_said_of_one_model_goes_before_what_is_said_of_many(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, turned: bool
    ) -> None:
        models = [
            {"model": "merged", "limit": 3, "num_fewshot": 1, "device": "cuda"},
            {"model": "a", "limit": 5, "gpus": 2},
        ]
        models = models[::-1] if turned else models
        found = self.made(monkeypatch, tmp_path, models=models, tasks=["t"])
        one, other = found.benchmark_job("a", "t"), found.benchmark_job("b", "t")
        assert (one.limit, one.num_fewshot, one.gpus_asked) == (5, 1, 2)
        assert (other.limit, other.num_fewshot, other.gpus_asked) == (3, 1, 1)

    def test_an_option_of_one_changes_the_identity_of_this_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def identities(**benchmark: Any) -> list[str]:
            found = self.made(monkeypatch, tmp_path, **benchmark)
            return [found.benchmark_identity(m, t) for m in ("a", "b") for t in ("t", "u")]

        usual = identities(tasks=["t", "u"])
        task = identities(tasks=["t", {"task": "u", "gen_kwargs": {"top_k": 3}}])
        model = identities(tasks=["t", "u"], models=["merged", {"model": "b", "seed": 3}])
        assert [a == b for a, b in zip(usual, task, strict=True)] == [True, False, True, False]
        assert [a == b for a, b in zip(usual, model, strict=True)] == [True, True, False, False]


class TestProbes:
    def test_a_source_is_asked_once_more_only_where_a_result_is_not_stored(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("text.txt").write_text("A text.")
        plan = replace(NO_PLAN, builds={name: Build(name, name, (), {}) for name in ("a", "b")})
        probes = {"text": "text.txt", "against": ["b"]}
        settings = load_settings({"recipes": ["r"], "benchmark": {"probes": probes}})
        found = Targets(settings, plan)
        file = "results/benchmarks/b/logits.safetensors"
        assert found.logits("a", ["perplexity", "kl"]) == [file]
        assert found.logits("a", ["perplexity"]) == found.logits("b", ["kl"]) == []
        assert found.reports().count("results/a/report/divergence.svg") == 1
        stored = tmp_path / ".shardmerge/benchmarks" / f"{found.benchmark_identity('a', 'kl')}.json"
        stored.parent.mkdir(parents=True)
        stored.write_text("{}")
        assert found.logits("a", ["kl"]) == []
        Path("text.txt").write_text("Another text.")
        assert Targets(settings, plan).logits("a", ["kl"]) == [file]
