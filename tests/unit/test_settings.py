"""The configuration: defaults, suggestions, sizes."""

from __future__ import annotations

import json

import pytest
import yaml

from shardmerge.errors import UserError
from shardmerge.layout import parse_size
from shardmerge.settings import SCHEMA, load_settings, own_config

ONE = {"recipes": ["r.yaml"]}
DEMO = {
    "recipes": ["config/recipes/miquplus-midnight-tiny.yaml"],
    "benchmark": {"tasks": ["demo_B"]},
}


class TestSettings:
    def test_every_default_is_valid(self):
        settings = load_settings(ONE)
        schema = json.loads(SCHEMA.read_text())
        assert set(settings.values) == set(schema["properties"])
        assert settings["benchmark"]["per"] == "task"

    def test_the_callers_dict_is_left_alone(self):
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
            ({**ONE, "delta_dtype": "half"}, "delta_dtype"),
            ({**ONE, "max_shard_size": "5 parsecs"}, "5GB"),
            ({**ONE, "device": "gpu"}, "device"),
            ({**ONE, "device": "cuda:"}, "device"),
            ({**ONE, "device": "cuda:123456789"}, "device"),
            ({"recipes": []}, "recipes"),
        ],
    )
    def test_mistakes(self, config, says):
        with pytest.raises(UserError, match=says):
            load_settings(config)

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
    def test_the_demos_settings_are_for_the_demo(self, tmp_path, file, given, tasks):
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
    def test_sizes(self, text, size):
        assert parse_size(text) == size
