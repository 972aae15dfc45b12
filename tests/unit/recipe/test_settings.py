"""The configuration: defaults, suggestions, sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from shardmerge.base.errors import UserError
from shardmerge.base.text import parse_size
from shardmerge.recipe.settings import SCHEMA, load_settings, own_config, with_shipped

ONE = {"recipes": ["r.yaml"]}
DEMO = {
    "recipes": ["config/recipes/miquplus-midnight-tiny.yaml"],
    "benchmark": {"tasks": ["demo_B"]},
}


class TestSettings:
    def test_every_default_is_valid(self) -> None:
        settings = load_settings(ONE)
        schema = json.loads(SCHEMA.read_text())
        assert set(settings.values) == set(schema["properties"])
        assert settings["benchmark"]["per"] == "task"

    def test_the_callers_dict_is_left_alone(self) -> None:
        config = {"recipes": ["r.yaml"], "benchmark": {}}
        load_settings(config)
        assert config == {"recipes": ["r.yaml"], "benchmark": {}}

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ({"recipies": []}, "'recipes'"),
            ({**ONE, "numeric": 1}, "'numerics'"),
            ({**ONE, "benchmark": {"task": []}}, "'tasks'"),
            ({**ONE, "deltas": "fused"}, "'fuse'"),
            ({**ONE, "numerics": "mergekit"}, "mergekit-0.1.5"),
            ({**ONE, "delta_dtype": "half"}, "delta_dtype.*\n.*'float16'"),
            ({**ONE, "delta_dtype": "fp8"}, "Known here: bfloat16, float16, float32, float64"),
            ({**ONE, "delta_dtype": "float8"}, "Known here: bfloat16, float16, float32, float64"),
            ({**ONE, "delta_dtype": "torch.bf16"}, "'bfloat16'"),
            ({**ONE, "benchmark": {"dtype": "fp16"}}, "benchmark.dtype.*\n.*'float16'"),
            ({**ONE, "keep_sources": "flase"}, "'flase' is not of type 'boolean'"),
            ({**ONE, "benchmark": {"limit": "five"}}, "benchmark.limit: 'five' is not of type"),
            ({**ONE, "benchmark": {"limit": "0"}}, "benchmark.limit: '0' is not of type"),
            ({**ONE, "benchmark": "{limt: 5}"}, "benchmark"),
            ({"recipes": "a.yaml"}, r"Write `\[a.yaml\]`"),
            ({"merge_method": "ties", "models": []}, "this is a recipe\n.*--config recipes="),
            ({**ONE, "max_shard_size": "5 parsecs"}, "5GB"),
            ({**ONE, "device": "gpu"}, "device"),
            ({**ONE, "device": "cuda:"}, "device"),
            ({**ONE, "device": "cuda:123456789"}, "device"),
            ({"recipes": []}, "recipes"),
        ],
    )
    def test_mistakes(self, config: dict[str, Any], says: str) -> None:
        with pytest.raises(UserError, match=says):
            load_settings(config)

    @pytest.mark.parametrize(
        ("given", "read"),
        [
            ({"keep_sources": "false"}, {"keep_sources": False}),
            ({"benchmark": {"limit": "5"}}, {"benchmark": {"limit": 5}}),
            ({"benchmark": "{limit: 5, tasks: [a]}"}, {"benchmark": {"limit": 5, "tasks": ["a"]}}),
            ({"benchmark": {"batch_size": "8"}}, {"benchmark": {"batch_size": 8}}),
            ({"benchmark": {"batch_size": "auto"}}, {"benchmark": {"batch_size": "auto"}}),
            ({"benchmark": {"tasks": ["1", "true"]}}, {"benchmark": {"tasks": ["1", "true"]}}),
            (
                {"resources": {"disk_mb_per_second": "2.5"}},
                {"resources": {"disk_mb_per_second": 2.5}},
            ),
            ({"delta_dtype": "null"}, {"delta_dtype": None}),
            ({"max_shard_size": "5GB"}, {"max_shard_size": "5GB"}),
            ({"card": {"description": "5"}}, {"card": {"description": "5"}}),
            ({"stages": "[a, final]"}, {"stages": ["a", "final"]}),
            ({"stages": "final"}, {"stages": "final"}),
            ({"norm_merge": {"a": "geometric"}}, {"norm_merge": {"a": "geometric"}}),
            ({"sources": {"o/m": "2"}}, {"sources": {"o/m": "2"}}),
        ],
    )
    def test_texts_of_the_command_line_are_read_as_yaml(
        self, given: dict[str, Any], read: dict[str, Any]
    ) -> None:
        """Snakemake hands values within lists and maps on as texts."""
        found = load_settings(ONE | given)
        for key, value in read.items():
            part = {k: found[key][k] for k in value} if isinstance(value, dict) else found[key]
            assert part == value and type(part) is type(value)

    @pytest.mark.parametrize(
        ("file", "given", "tasks"),
        [
            (DEMO, {}, ["demo_B"]),
            (DEMO, {"device": "cuda"}, ["demo_B"]),
            (DEMO, ONE, []),
            (DEMO, ONE | {"benchmark": {"tasks": ["mmlu"]}}, ["mmlu"]),
            (DEMO, {"recipes": DEMO["recipes"]}, ["demo_B"]),
            (DEMO | {"recipes": ["mine.yaml"]}, ONE, ["demo_B"]),
            (None, ONE, []),
        ],
    )
    def test_the_demos_settings_are_for_the_demo(
        self, tmp_path: Path, file: dict[str, Any] | None, given: dict[str, Any], tasks: list[Any]
    ) -> None:
        """Recipes of one's own do not take them; a file that was edited stays in force."""
        path = tmp_path / "config.yaml"
        if file:
            path.write_text(yaml.safe_dump(file))
        merged = (file or {}) | given
        merged["benchmark"] = (file or {}).get("benchmark", {}) | given.get("benchmark", {})
        assert load_settings(own_config(merged, given, path))["benchmark"]["tasks"] == tasks

    @pytest.mark.parametrize(
        ("text", "size"),
        [("5GB", 5 * 10**9), ("500MiB", 500 * 2**20), ("1.5g", 1.5 * 10**9), (7, 7), (None, None)],
    )
    def test_sizes(self, text: int | str | None, size: float | int | None) -> None:
        assert parse_size(text) == size


class TestShipped:
    """The demo is found from any folder, and what lies in the working folder comes first."""

    HOME = Path(__file__).parents[3]
    RECIPE = "config/recipes/miquplus-midnight-tiny.yaml"
    GIVEN: ClassVar = {
        "recipes": [RECIPE, "config/recipes/mine.yaml"],
        "benchmark": {"include_path": "config/tasks/demo"},
    }

    def test_from_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        found = with_shipped(load_settings(self.GIVEN), self.HOME)
        assert found["recipes"] == [str(self.HOME / self.RECIPE), "config/recipes/mine.yaml"]
        assert found["benchmark"]["include_path"] == str(self.HOME / "config/tasks/demo")
        folder = str(self.HOME / "resources/demo/miqu-tiny")
        assert found["sources"]["resources/demo/miqu-tiny"] == folder

    def test_own_files_come_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for path in (self.RECIPE, "resources/demo/miqu-tiny/config.json"):
            Path(path).parent.mkdir(parents=True)
            Path(path).touch()
        found = with_shipped(load_settings(self.GIVEN), self.HOME)
        assert found["recipes"][0] == self.RECIPE
        assert "resources/demo/miqu-tiny" not in found["sources"]

    def test_in_the_projects_own_folder_nothing_changes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(self.HOME)
        settings = load_settings(self.GIVEN)
        assert with_shipped(settings, self.HOME) == settings
