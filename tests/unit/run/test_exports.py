"""What a run exports, under which names, and to which repositories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.plan.plan import NO_PLAN, Build, ShardJob
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
        made = ("bf16", "q4_k_m", "SHA256SUMS")
        assert found.exports.packages() == [
            f"results/{n}/exports/gguf/{f}" for n in "ab" for f in made
        ]
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


class TestMirrors:
    """Forms with a shard for each of the model's: a package, and a variant, for each scheme."""

    FOLDER = "results/a/exports/w4a16"

    def found(self, **options: Any) -> Targets:
        schemes = {"schemes": ["w4a16", "fp8-dynamic"]}
        shards = tuple(
            ShardJob(
                f"results/a/model/{name}.safetensors", name, (), (), 1, 1, 1, 0, 1, False, False
            )
            for name in ("model-00001-of-00002", "model-00002-of-00002")
        )
        files = {"config.json": "x", "tokenizer.json": "y"}
        plan = replace(NO_PLAN, builds={"a": Build("a", "digest of a", shards, files)})
        exports = {"exports": {"compressed": schemes | options}}
        return Targets(load_settings({"recipes": ["r"]} | exports), plan)

    def test_files_are_called_as_the_models(self) -> None:
        exports = self.found().exports
        names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        names += ["config.json", "tokenizer.json", "model.safetensors.index.json"]
        assert exports.made("a", "w4a16", "w4a16") == [f"{self.FOLDER}/{name}" for name in names]
        assert exports.mirrors() == ["fp8-dynamic", "w4a16"]
        assert exports.comparisons("a", "w4a16") == [
            f"results/a/exports/work/w4a16/model-0000{i}-of-00002.json" for i in (1, 2)
        ]
        assert f"{self.FOLDER}/SHA256SUMS" in exports.packages()

    def test_a_model_to_benchmark(self) -> None:
        (w4, _) = sorted(self.found().exports.measured(self.found().plan.builds["a"]),
                         key=lambda m: m.name, reverse=True)  # fmt: skip
        assert (w4.name, w4.folder) == ("a-W4A16", self.FOLDER)
        assert f"{self.FOLDER}/config.json" in w4.files

    def test_repositories(self) -> None:
        settings = {"recipes": ["r"], "publish": {"repository": "me/{name}"}}
        found = self.found()
        own = replace(found.exports, settings=load_settings(
            settings | {"exports": {"compressed": {"schemes": ["w4a16", "fp8-dynamic"]}}}
        ))  # fmt: skip
        assert own.repositories("a") == {
            "fp8-dynamic": "me/a-FP8-DYNAMIC",
            "w4a16": "me/a-W4A16",
        }
        one = self.found(repository="me/all").exports
        with pytest.raises(UserError, match="would take 2 forms"):
            one.repository("a", "w4a16")
        assert self.found(repository="me/x-{form}").exports.repository("a", "w4a16") == "me/x-W4A16"

    @pytest.mark.parametrize("scheme", ["fp8", "nvfp4", "awq", "gptq"])
    def test_what_needs_calibration_is_refused(self, scheme: str) -> None:
        with pytest.raises(UserError, match=f"{scheme} cannot be made from weights alone"):
            self.found(schemes=[scheme])

    def test_an_unknown_scheme(self) -> None:
        with pytest.raises(UserError, match=r"exports\.compressed\.schemes"):
            self.found(schemes=["w4a17"])


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
