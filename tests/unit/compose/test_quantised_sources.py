"""Sources whose weights are quantised: told of, refused with the reason, or plain after all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import LLAMA, llama_shapes, random_tensors, save_model
from helpers.planned import described
from shardmerge.base.errors import UserError
from shardmerge.package.card import make_card
from shardmerge.package.config import output_config
from shardmerge.plan.description import BuildDescription
from shardmerge.recipe.recipe import load_recipe
from shardmerge.sources.sources import Sources

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def linear(*models: str) -> dict:
    rows = [{"model": name, "parameters": {"weight": 0.5}} for name in models]
    return {"name": "out", "merge_method": "linear", "models": rows, "dtype": "bfloat16"}


def model(name: str, change: Any = lambda tensors: None, **config: Any) -> None:
    """Write a tiny Llama, its tensors changed in place."""
    tensors = random_tensors(llama_shapes(2), ord(name[-1]))
    change(tensors)
    save_model(Path(name), tensors, 1, LLAMA | {"num_hidden_layers": 2} | config)


def fp8(tensors: dict[str, torch.Tensor]) -> None:
    for name in [n for n in tensors if n.endswith("proj.weight")]:
        scale = tensors[name].float().abs().max() / 448
        tensors[name + "_scale_inv"] = scale.reshape(1, 1)
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)


def gptq(tensors: dict[str, torch.Tensor]) -> None:
    for name in [n for n in tensors if n.endswith("proj.weight")]:
        rows, columns = tensors.pop(name).shape
        module = name.removesuffix("weight")
        groups = -(-columns // 16)
        tensors[module + "qweight"] = torch.arange(columns // 8 * rows, dtype=torch.int32).view(
            -1, rows
        )
        tensors[module + "qzeros"] = torch.ones(groups, rows // 8, dtype=torch.int32)
        tensors[module + "scales"] = torch.ones(groups, rows, dtype=torch.float16)


class TestTold:
    @pytest.mark.parametrize(
        ("change", "config", "said"),
        [(fp8, FP8, "fp8-block"), (fp8, None, "fp8-block"), (gptq, GPTQ, "gptq")],
    )
    def test_what_is_decoded(
        self, change: Callable[..., Any], config: dict[str, Any] | None, said: str
    ) -> None:
        model("a", change, **({"quantization_config": config} if config else {}))
        model("b")
        description, warnings = described(linear("a", "b"))
        assert description["decoded"] == {"a": {said: 14}}
        assert len(warnings) == 1 and warnings[0].endswith("[quantised-source]")
        assert f"a is quantised ({said})" in warnings[0]
        kinds = {row[0] for shard in description["shards"] for row in shard["tensors"].values()}
        assert kinds == {"BF16"}
        card = make_card(BuildDescription.from_json(description, "d"), {})
        assert f"decoded before they were merged: `a` ({said}, 14 weights)" in card

    def test_a_file_beside_the_config(self) -> None:
        model("a", gptq)
        Path("a/quantize_config.json").write_text(json.dumps(GPTQ))
        description, _ = described(linear("a"))
        assert description["decoded"] == {"a": {"gptq": 14}}
        lock = json.loads(Path("recipe.lock.json").read_text())
        assert lock["sources"]["a"]["side_files"] == {"quantize_config.json": GPTQ}

    def test_a_lock_that_was_made_before(self) -> None:
        """It is completed; a job, which writes none, does without."""
        model("a", gptq)
        Path("a/quantize_config.json").write_text(json.dumps(GPTQ))
        described(linear("a"))
        path = Path("recipe.lock.json")
        whole = path.read_text()
        lock = json.loads(whole)
        del lock["sources"]["a"]["side_files"]
        path.write_text(json.dumps(lock))
        recipe, sources = load_recipe("recipe.yaml"), Sources({}, Path("m"), Path("c"))
        with pytest.raises(UserError, match="does not tell how model 'a' is quantised"):
            sources.lock(recipe, write=False, renew=False, say=print)
        sources.lock(recipe, write=True, renew=False, say=print)
        assert path.read_text() == whole


class TestRefused:
    def test_parts_that_are_missing(self) -> None:
        def broken(tensors: Any) -> None:
            gptq(tensors)
            del tensors["model.layers.0.mlp.up_proj.scales"]

        model("a", broken, quantization_config=GPTQ)
        with pytest.raises(UserError, match=r"up_proj.scales' is missing") as error:
            described(linear("a"))
        assert "model 'a'" in str(error.value)

    def test_a_method_that_no_format_reads(self) -> None:
        model("a")
        model("b", gptq, quantization_config={"quant_method": "quanto"})
        with pytest.raises(UserError, match="'quanto', which cannot be read") as error:
            described(linear("a", "b"))
        assert "model 'b'/config.json" in str(error.value)

    def test_codes_that_nothing_announces(self) -> None:
        for name in "ab":
            model(name, gptq)
        with pytest.raises(UserError, match="I32 in 'a', I32 in 'b'") as error:
            described(linear("a", "b"))
        assert "qweight' cannot be merged" in str(error.value)

    def test_codes_beside_floats(self) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        model("a", lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
        model("b")
        with pytest.raises(UserError, match=f"{name}.*I8 in 'a', F16 in 'b'"):
            described(linear("a", "b"))


class TestBuffers:
    def test_masks_positions_and_counters_are_copied(self) -> None:
        buffers = {
            "model.layers.0.self_attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
            "model.layers.0.self_attn.masked_bias": torch.tensor(1, dtype=torch.uint8),
            "model.position_ids": torch.arange(4, dtype=torch.int32)[None],
            "model.layers.0.seen": torch.tensor(7),
            "model.layers.0.mask": torch.ones(3, dtype=torch.bool),
        }
        for name in "ab":
            model(name, lambda tensors: tensors.update(buffers))
        description, warnings = described(linear("a", "b"))
        tensors = {k: v for shard in description["shards"] for k, v in shard["tensors"].items()}
        assert {tensors[name][0] for name in buffers} == {"U8", "I32", "I64", "BOOL"}
        assert not warnings

    def test_codes_of_one_model_are_copied(self) -> None:
        model("a", lambda tensors: tensors.update({"model.codes": torch.ones(3, dtype=torch.int8)}))
        recipe = {"name": "out", "merge_method": "passthrough", "models": [{"model": "a"}]}
        (shard,) = described(recipe)[0]["shards"]
        assert shard["tensors"]["model.codes"] == ["I8", [3]]


class TestStale:
    @pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
    def test_told_and_dropped(self, key: str) -> None:
        model("a", **{key: GPTQ, "text_config": {key: GPTQ, "vocab_size": 1}})
        model("b")
        description, warnings = described(linear("a", "b"))
        assert len(warnings) == 1 and warnings[0].endswith("[stale-quantisation]")
        made = output_config(
            Path("a/config.json").read_text(), BuildDescription.from_json(description, "d"), "c"
        )
        assert "quantization" not in made and "compression" not in made
        expected = json.loads(Path("a/config.json").read_text()) | {"dtype": "bfloat16"}
        del expected[key]
        assert json.loads(made) == expected | {"text_config": {"vocab_size": 1}}

    def test_none_of_its_business(self) -> None:
        for name in "ab":
            model(name)
        description, warnings = described(linear("a", "b"))
        assert not warnings and "config_removed" not in description
