"""Periods over layers in config.json: as transformers reads them, and after slices."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers.models import llama
from helpers.planned import described, slices
from shardmerge.compose.architecture.layer_periods import OTHERS, RULES, implied, untold

COUNT = 13


def change_config(name: str, **values: object) -> None:
    path = Path(name) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class TestFamilies:
    @pytest.mark.parametrize("family", RULES)
    @pytest.mark.parametrize("period", [None, 3])
    def test_a_list_is_what_the_class_makes_up(self, family: str, period: int | None) -> None:
        from transformers import AutoConfig

        config = {"model_type": family}
        if period and RULES[family].keys:
            config[RULES[family].keys[0]] = period
        key, values = implied(config, COUNT)
        made = AutoConfig.for_model(num_hidden_layers=COUNT, **config)
        assert getattr(made, key) == values
        assert len(set(values)) == 2
        # The class takes the list from config.json, whatever the period.
        moved = values[2:] + values[:2]
        again = AutoConfig.for_model(num_hidden_layers=COUNT, **config, **{key: moved})
        assert getattr(again, key) == moved

    @pytest.mark.slow
    def test_every_family_of_transformers_with_a_rule_is_known(self) -> None:
        from transformers import CONFIG_MAPPING

        found = set()
        for family in CONFIG_MAPPING:
            try:
                config = CONFIG_MAPPING[family](num_hidden_layers=COUNT).to_dict()
            except Exception:  # a class that takes no number of layers, or needs more
                continue
            lists = [config.get(k) for k in ("layer_types", "no_rope_layers", "layers_block_type")]
            lists = [v for v in lists if isinstance(v, list) and len(v) == COUNT]
            if any(len(set(map(str, values))) > 1 for values in lists):
                found.add(family)
        unlike = {"inkling2_text", "inkling_text"}  # one kind of layer up to this number
        assert found | unlike == OTHERS | set(RULES)


class TestImplied:
    def test_a_list_of_its_own_counts(self) -> None:
        config = {"model_type": "gemma3_text", "layer_types": ["full_attention"]}
        assert implied(config, 1) is None

    @pytest.mark.parametrize("period", ["LLLG", 0, 2.5])
    def test_a_period_that_is_no_number_of_layers(self, period: float | int | str) -> None:
        assert implied({"model_type": "exaone4", "sliding_window_pattern": period}, 4) is None

    def test_another_family(self) -> None:
        assert implied({"model_type": "llama", "sliding_window_pattern": 2}, 4) is None


class TestUntold:
    JAMBA = {"model_type": "jamba", "attn_layer_period": 4, "expert_layer_period": 2}  # noqa: RUF012

    def test_layers_that_keep_their_places(self) -> None:
        assert untold(self.JAMBA, [0, 1, 2, 3]) == []
        assert untold(self.JAMBA, [4, 5, 6, 7, 0, 1]) == []
        assert untold(self.JAMBA, [0, 1, 0, 1]) == ["attn_layer_period"]
        assert untold(self.JAMBA, [1, 2]) == ["attn_layer_period", "expert_layer_period"]

    def test_what_a_list_says(self) -> None:
        known = {"model_type": "gemma3_text", "sliding_window_pattern": 6}
        assert untold(known, [3, 2]) == []
        other = {"model_type": "new", "sliding_window_pattern": 6}
        assert untold(other, [3, 2]) == ["sliding_window_pattern"]
        assert untold(other | {"layer_types": ["full_attention"] * 4}, [3, 2]) == []

    def test_a_rule_of_its_own(self) -> None:
        assert untold({"model_type": "kimi_linear"}, [0, 1, 1]) == ["model_type"]
        assert untold({"model_type": "kimi_linear"}, [0, 1, 2]) == []
        assert untold({"model_type": "kimi_linear", "layer_types": ["x", "y"]}, [1, 0]) == []


class TestSlices:
    """Recipes of slices of two models with six layers."""

    @pytest.fixture(autouse=True)
    def work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for i, name in enumerate("ab"):
            llama(Path(name), seed=i, layers=6, files=1)
            change_config(name, model_type="gemma3_text", sliding_window_pattern=3)

    def test_the_order_is_written_as_a_list(self) -> None:
        found, warnings = described(slices(("a", 0, 4), ("b", 2, 6)))
        kinds = ["sliding_attention"] * 2 + ["full_attention"]
        assert found["config"] == {
            "num_hidden_layers": 8,
            "layer_types": [*(kinds * 2)[:4], *(kinds * 2)[2:]],
        }
        assert not any("layer-period" in w for w in warnings)

    def test_each_source_has_its_own_period(self) -> None:
        change_config("b", sliding_window_pattern=2)
        found, _ = described(slices(("a", 0, 2), ("b", 0, 2)))
        kinds = ["sliding_attention"] * 3 + ["full_attention"]
        assert found["config"] == {"num_hidden_layers": 4, "layer_types": kinds}

    def test_a_period_that_still_holds_stays(self) -> None:
        found, _ = described(slices(("a", 0, 3), ("b", 0, 6)))
        assert found["config"] == {"num_hidden_layers": 9}

    def test_one_source_has_a_list(self) -> None:
        change_config("b", layer_types=[f"t{i}" for i in range(6)])
        found, _ = described(slices(("a", 0, 2), ("b", 4, 6)))
        assert found["config"]["layer_types"] == ["sliding_attention"] * 2 + ["t4", "t5"]

    def test_a_period_without_a_list_is_told(self) -> None:
        for name in "ab":
            change_config(
                name, model_type="jamba", attn_layer_period=4, sliding_window_pattern=None
            )
        found, warnings = described(slices(("a", 0, 3), ("b", 2, 6)))
        assert found["config"] == {"num_hidden_layers": 7}
        (told,) = warnings
        assert re.search(r"`attn_layer_period: 4` of config.json .* \[layer-period\]$", told)
        assert described(slices(("a", 0, 4), ("b", 0, 6)))[1] == []
