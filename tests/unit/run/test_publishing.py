"""What a run publishes, where it goes, and what is told before any job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.plan.plan import NO_PLAN, Adapter, Build, PlannedSource
from shardmerge.recipe.settings import load_settings
from shardmerge.run.targets import Targets

GGUF = {"gguf": {"types": ["q8_0"]}}
SOURCE = PlannedSource("base", ("base/config.json", "base/model.safetensors"), "i", 100)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def targets(builds: str = "a", size: int = 100, base: str = "o/base", **config: Any) -> Targets:
    adapter = Adapter("lora", "d", (), (), "a", base)
    plan = replace(
        NO_PLAN,
        builds={n: Build(n, f"digest of {n}", (), {}) for n in builds},
        sources={"o/base": replace(SOURCE, size=size)},
        adapters={"lora": adapter},
    )
    return Targets(load_settings({"recipes": ["r"], "exports": GGUF} | config), plan)


def published(pattern: str = "me/{name}", **more: Any) -> Targets:
    return targets(publish={"repository": pattern, **more})


class TestParcels:
    def test_models_exports_and_adapters(self) -> None:
        found = published().publishing
        assert [(p.kind, p.folder, p.repository) for p in found.parcels()] == [
            ("model", "results/a/model", "me/a"),
            ("export", "results/a/exports/gguf", "me/a-GGUF"),
            ("adapter", "results/lora/adapter", "me/lora"),
        ]
        assert found.receipts() == [
            *("results/a/published.json", "results/lora/published.json"),
            "results/a/exports/gguf.published.json",
        ]
        assert "signature" not in found.listing()

    def test_signed_and_collected(self) -> None:
        Path("key.pem").touch()
        found = published(sign={"key": "key.pem"}, collection="Mine").publishing
        assert found.receipts()[-1] == "results/collection.published.json"
        assert found.listing()["signature"][0] == "results/a/model/model.sig"
        assert "results/lora/adapter/model.sig" in found.packages()
        assert found.key() == "key.pem"

    def test_one_repository_for_two_is_refused(self) -> None:
        with pytest.raises(UserError, match="would take 2 models and adapters"):
            published("me/x").publishing.parcels()
        found = targets(
            publish={"repository": "me/{name}"},
            exports={"gguf": {"types": ["q8_0"], "repository": "me/lora"}},
        )
        with pytest.raises(UserError, match="'me/lora' would take results/a/exports/gguf and"):
            found.publishing.parcels()


class TestCards:
    def test_name_each_other(self) -> None:
        found = published()
        assert '"adapters":["me/lora"]' in found.card("a")
        assert found.publishing.base_of("lora") is None
        own = targets(base="a", publish={"repository": "me/{name}"}).publishing
        assert own.base_of("lora") == "me/a"

    def test_stay_as_they_were_where_nothing_is_published(self) -> None:
        assert "adapters" not in targets().card("a")


class TestConfiguration:
    @pytest.mark.parametrize(
        ("publish", "told"),
        [
            ({"sign": {"key": "k", "sigstore": True}}, "a key and for sigstore"),
            ({"repository": None, "tag": "v1"}, "names no repository"),
            ({"tag": "--force"}, "publish.tag"),
            ({"tag": "a..b"}, "publish.tag"),
            ({"branch": "$(x)"}, "publish.branch"),
            ({"branch": "x.lock"}, "publish.branch"),
        ],
    )
    def test_mistakes_are_told_before_any_job(self, publish: Any, told: str) -> None:
        with pytest.raises(UserError, match=told):
            targets(publish={"repository": "me/{name}"} | publish)

    def test_a_key_that_is_not_there(self) -> None:
        with pytest.raises(UserError, match="'none' is no file"):
            published(sign={"key": "none"}).publishing.key()


class TestAdapters:
    def measured(self, models: list[str], **more: Any) -> Targets:
        return targets(benchmark={"models": models, "tasks": ["t"]}, **more)

    def test_is_measured_on_its_base(self) -> None:
        for models in (["lora"], ["adapters"]):
            (model,) = self.measured(models).measured.values()
            assert (model.folder, model.adapter) == ("base", "results/lora/adapter")
        found = self.measured(["sources", "adapters"])
        assert found.benchmark_beside("lora") == ["--adapter=results/lora/adapter"]
        assert found.derived() == {"lora": "base"}
        assert [Path(p).parent.name for p in found.measurements("a")] == ["base", "lora"]

    def test_sources_alone_are_measured_for_no_adapter(self) -> None:
        assert self.measured(["sources"], builds="").measured == {}
        assert list(self.measured(["sources", "lora"], builds="").measured) == ["base", "lora"]

    def test_is_loaded_on_weights_if_these_are_small(self) -> None:
        small, large = targets().adapters, targets(size=10**12).adapters
        assert small.base_files("lora") == list(SOURCE.files) and small.on_weights("lora")
        assert large.base_files("lora") == ["base/config.json"] and not large.load_bytes("lora")
        assert small.loaded("lora") == ["results/lora/loaded.json"]

    def test_a_base_that_is_no_whole_model(self) -> None:
        found = targets(base="o/base+o/lora").adapters
        assert found.loaded("lora") == []
        with pytest.raises(UserError, match="is no whole model here"):
            found.base_files("lora")

    def test_the_export_is_compared_with_its_model(self) -> None:
        assert self.measured(["merged", "exports"]).derived() == {"a-Q8_0": "a"}

    def test_llama_cpp_gets_its_folder(self) -> None:
        entry: Any = {"model": "exports", "backend": "llama_cpp"}
        found = self.measured([entry], llama_cpp="tools")
        assert found.benchmark_beside("a-Q8_0") == [
            *("--tokenizer=results/a/model", "--llama-cpp=tools")
        ]
