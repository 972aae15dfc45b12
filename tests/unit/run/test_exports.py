"""What a run exports, under which names, and to which repositories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.plan.plan import NO_PLAN, Build
from shardmerge.recipe.settings import load_settings
from shardmerge.run.targets import Targets

GGUF = {"types": ["bf16", "q4_k_m"]}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def targets(gguf: Any = GGUF, builds: str = "a", **config: Any) -> Targets:
    plan = replace(NO_PLAN, builds={n: Build(n, f"digest of {n}", (), {}) for n in builds})
    return Targets(load_settings({"recipes": ["r"], "exports": {"gguf": gguf}} | config), plan)


class TestPackages:
    def test_none_without_types(self) -> None:
        found = targets({})
        assert found.exports.packages() == found.exports.found("a", waits=True) == []
        assert found.publishing.receipts() == ["results/a/published.json"]

    def test_one_for_each_build_and_form(self) -> None:
        found = targets(builds="ab")
        assert found.exports.packages() == [f"results/{n}/exports/gguf/SHA256SUMS" for n in "ab"]
        assert found.exports.folder("a", "gguf") == "results/a/exports/gguf"
        assert "results/b/exports/gguf.published.json" in found.publishing.receipts()

    def test_the_summary_waits_for_checks_or_takes_what_is_there(self) -> None:
        found = targets().exports
        paths = [f"results/a/exports/checks/gguf/{kind}.json" for kind in GGUF["types"]]
        assert found.found("a", waits=True) == paths
        assert found.found("a", waits=False) == []
        Path(paths[1]).parent.mkdir(parents=True)
        Path(paths[1]).write_text("{}")
        assert found.found("a", waits=False) == paths[1:]

    def test_a_hostile_name_is_none_in_files(self) -> None:
        assert targets().exports.label("-it's $(x) a/b", "gguf", "q8_0") == "it-s---x--a-b-Q8_0"


class TestConfiguration:
    @pytest.mark.parametrize(
        ("gguf", "told"),
        [
            ({"types": ["iq2_xs"]}, "importance matrix"),
            ({"types": ["q8_0"], "imatrix": "nowhere.txt"}, "'nowhere.txt' is no file"),
            ({"types": ["q8_0"], "split_size": "big"}, "not a size"),
            ({"types": ["$(touch PWNED)"]}, "exports.gguf.types"),
            ({"types": ["--imatrix"]}, "exports.gguf.types"),
            ({"types": ["q8_0"], "imatrix": "-x"}, "looks like an option"),
        ],
    )
    def test_mistakes_are_told_before_any_job(self, gguf: Any, told: str) -> None:
        with pytest.raises(UserError, match=told.replace("$", r"\$")):
            targets(gguf)

    def test_the_text_counts_by_its_content_where_something_is_rounded(self) -> None:
        def identities() -> list[str]:
            found = targets(GGUF | {"imatrix": "text"}).exports
            return [found.identity("gguf", variant) for variant in GGUF["types"]]

        Path("text").write_text("one")
        plain, rounded = identities()
        Path("text").write_text("two")
        assert identities()[0] == plain and identities()[1] != rounded


class TestRepositories:
    def test_beside_the_models(self) -> None:
        found = targets(publish={"repository": "me/{name}"})
        assert found.exports.repositories("a") == {"gguf": "me/a-GGUF"}
        assert '"exports":{"gguf":"me/a-GGUF"}' in found.card("a")

    def test_of_their_own(self) -> None:
        own = GGUF | {"repository": "you/{name}"}
        assert targets(own, publish={"repository": "me/{name}"}).exports.repositories("a") == {
            "gguf": "you/a"
        }

    def test_cards_stay_as_they_were_where_nothing_is_exported_or_published(self) -> None:
        assert "exports" not in targets().card("a")
        assert "exports" not in targets({}, publish={"repository": "me/{name}"}).card("a")

    @pytest.mark.parametrize(
        ("own", "builds", "told"),
        [
            (None, "a", "names no repository"),
            ("me/x", "ab", "would take 2 models"),
            ("a b", "a", "is no Hub repository"),
        ],
    )
    def test_mistakes(self, own: str | None, builds: str, told: str) -> None:
        with pytest.raises(UserError, match=told):
            targets(GGUF | {"repository": own}, builds).exports.repository("a", "gguf")

    def test_never_the_models_own(self) -> None:
        found = targets(GGUF | {"repository": "me/a"}, publish={"repository": "me/{name}"})
        with pytest.raises(UserError, match="is the model's repository"):
            found.exports.repository("a", "gguf")


class TestBenchmarks:
    def measured(self, models: list[str], builds: str = "ab") -> Targets:
        return targets(builds=builds, benchmark={"models": models, "tasks": ["t"]})

    def test_all_or_single_ones(self) -> None:
        found = self.measured(["merged", "exports"])
        labels = [f"{n}-{kind}" for n in "ab" for kind in ("BF16", "Q4_K_M")]
        assert list(found.measured) == ["a", "b", *labels]
        assert list(self.measured(["b-Q4_K_M"]).measured) == ["b-Q4_K_M"]
        with pytest.raises(UserError, match="'b-Q4_K_M'"):
            self.measured(["b-Q4_KM"])

    def test_a_table_has_its_own_models_exports(self) -> None:
        tables = self.measured(["merged", "exports"]).measurements("a")
        assert [Path(path).parent.name for path in tables] == ["a", "a-BF16", "a-Q4_K_M"]

    def test_the_models_tokenizer_is_used(self) -> None:
        found = self.measured(["merged", "a-BF16"])
        assert found.benchmark_beside("a") == []
        assert found.benchmark_beside("a-BF16") == ["--tokenizer=results/a/model"]
        assert found.measured["a-BF16"].folder == "results/a/exports/gguf/bf16"
