"""The configuration: defaults, suggestions, sizes."""

from __future__ import annotations

import json

import pytest

from shardmerge.errors import UserError
from shardmerge.layout import parse_size
from shardmerge.settings import SCHEMA, load_settings

ONE = {"recipes": ["r.yaml"]}


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
            ({"recipes": []}, "recipes"),
        ],
    )
    def test_mistakes(self, config, says):
        with pytest.raises(UserError, match=says):
            load_settings(config)

    @pytest.mark.parametrize(
        ("text", "size"),
        [("5GB", 5 * 10**9), ("500MiB", 500 * 2**20), ("1.5g", 1.5 * 10**9), (7, 7), (None, None)],
    )
    def test_sizes(self, text, size):
        assert parse_size(text) == size
