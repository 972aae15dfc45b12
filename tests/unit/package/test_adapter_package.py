"""The folder of an adapter: its configuration, its one file of weights, its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardmerge.algebra.factorization import FactorModule, ModuleRecord
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.package.adapter import (
    adapter_config,
    base_name,
    config_text,
    join_factors,
    saved_names,
    target_names,
)
from shardmerge.package.adapter_card import adapter_card, adapter_provenance
from shardmerge.plan.adapter_description import AdapterDescription
from shardmerge.plan.description import DescribedSource, RecipeFile, StageText
from shardmerge.report.adapter import adapter_page, adapter_table, draw_errors, draw_ranks

MODULES = tuple(f"model.layers.{i}.self_attn.{x}_proj" for i in range(2) for x in "qkv")


def described(**changes: Any) -> AdapterDescription:
    values: dict[str, Any] = {
        "name": "small",
        "recipe": RecipeFile(file="/data/me/r.yaml", text="name: small\n"),
        "stages": (StageText(name="small", method="extract_lora", text="name: small\n"),),
        "model": "/data/me/tuned",
        "base": "org/base",
        "sources": {
            "org/base": DescribedSource(kind="hub", repo="org/base", commit="0" * 40, files={}),
            "/data/me/tuned": DescribedSource(kind="local", files={}),
        },
        "decomposition": "exact",
        "rank": 8,
        "energy": None,
        "cut": None,
        "alpha": None,
        "seed": 0,
        "dtype": "F32",
        "turned": False,
        "factors": (),
        "modules": (*MODULES, "lm_head"),
        "saved": (),
        "left": ("lm_head.weight",),
        "equal": (),
    }
    return AdapterDescription(**values | changes)


def made(*ranks: int) -> list[tuple[FactorModule, ModuleRecord]]:
    return [
        (
            FactorModule(name=name, tensor=f"{name}.weight"),
            ModuleRecord(name=name, rank=rank, norm=2.0, error=0.5, values=(1.5,) * rank),
        )
        for name, rank in zip(MODULES, ranks, strict=True)
    ]


def test_one_rank_has_no_patterns() -> None:
    config = adapter_config(described(), made(*[4] * 6), "org/base")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 4, {})
    assert config["target_modules"] == ["k_proj", "q_proj", "v_proj"]


def test_other_ranks_are_patterns_and_scale_stays_1() -> None:
    config = adapter_config(described(), made(4, 4, 4, 4, 4, 2), "org/base")
    assert config["rank_pattern"] == config["alpha_pattern"] == {MODULES[5]: 2}


def test_a_given_alpha_holds_for_all() -> None:
    config = adapter_config(described(alpha=16.0), made(4, 4, 4, 4, 4, 2), "org/base")
    assert (config["lora_alpha"], config["alpha_pattern"]) == (16, {})


def test_modules_without_an_update_are_no_targets() -> None:
    config = adapter_config(described(), made(4, 0, 4, 4, 4, 4), "org/base")
    assert config["target_modules"] == [MODULES[4], "q_proj", "v_proj"]


def test_nothing_is_no_adapter() -> None:
    with pytest.raises(UserError, match="the model is the same as 'org/base'"):
        adapter_config(described(), made(*[0] * 6), "org/base")


def test_names_of_fused_experts_keep_their_module() -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert target_names([name], [name, "model.layers.0.gate_up_proj"]) == ["experts.gate_up_proj"]


def test_weights_are_one_file_in_the_order_of_names(tmp_path: Path) -> None:
    parts = [tmp_path / f"{i}.safetensors" for i in range(2)]
    save_file({"b": torch.ones(3), "d": torch.zeros(2, 2)}, parts[0])
    save_file({"a": torch.arange(5), "c": torch.empty(0)}, parts[1])
    sha256 = join_factors(parts, tmp_path / "all.safetensors", chunk=3)
    assert sha256 == sha256_of(tmp_path / "all.safetensors")
    found = load_file(tmp_path / "all.safetensors")
    assert list(found) == ["a", "b", "c", "d"]
    assert torch.equal(found["a"], torch.arange(5))


def test_the_card_tells_of_the_base_and_not_of_this_machine() -> None:
    text = adapter_card(described(), made(4, 4, 4, 4, 4, 2), {"license": "mit"})
    assert "base_model: org/base\n" in text
    assert "library_name: peft\n" in text
    assert "/data/me" not in text
    assert "`self_attn.v_proj` | 2 | 2 to 4 | 0.2500" in text
    assert "Not in the adapter: 1 tensor" in text


@pytest.mark.parametrize(
    "base", ["/data/me/llama", "./models/x/llama", "~/x/llama", "my/own/llama"]
)
def test_a_base_that_is_a_folder_is_told_by_its_name_alone(base: str) -> None:
    """The Hub would take a path for a repository, and it may tell of this machine."""
    found = described(base=base, sources={base: DescribedSource(kind="local", files={})})
    text = adapter_card(found, made(*[4] * 6), {})
    assert "base_model" not in text and base not in text
    assert "A LoRA adapter of `llama`" in text and "from_pretrained('llama')" in text
    assert base_name(found) == "llama"
    assert base not in json.dumps(adapter_provenance("0" * 64, found, made(*[4] * 6), {})["base"])
    published = adapter_card(found, made(*[4] * 6), {}, "me/llama")
    assert "base_model: me/llama\n" in published and "base_model_relation: adapter" in published


def test_a_folder_that_stands_for_a_repository_is_told_as_that() -> None:
    found = described(sources={"org/base": DescribedSource(kind="local", files={})})
    assert "base_model: org/base\n" in adapter_card(found, made(*[4] * 6), {})


def test_provenance_has_no_paths() -> None:
    told = adapter_provenance("0" * 64, described(), made(*[4] * 6), {})
    assert "/data/me" not in json.dumps(told)
    assert told["modules"][MODULES[0]] == {"rank": 4, "norm": 2.0, "error": 0.5}


def test_the_configuration_is_as_peft_reads_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = adapter_config(described(), made(*[4] * 6), "org/base")
    (tmp_path / "adapter_config.json").write_text(config_text(config))
    read = peft.LoraConfig.from_pretrained(tmp_path)
    assert (read.r, read.base_model_name_or_path) == (4, "org/base")


def test_the_report(tmp_path: Path) -> None:
    rows = made(4, 4, 4, 4, 4, 2)
    assert "2 to 4" in adapter_page(described(), rows)
    assert adapter_table(rows).splitlines()[6].split("\t")[:3] == [MODULES[5], "1", "2"]
    for draw in (draw_errors, draw_ranks):
        draw("small", rows, tmp_path / "a.svg")
        first = (tmp_path / "a.svg").read_bytes()
        draw("small", rows, tmp_path / "a.svg")
        assert (tmp_path / "a.svg").read_bytes() == first
    draw_errors("small", [], tmp_path / "a.svg")


def test_names_of_saved_modules_are_the_end_of_no_other() -> None:
    """peft compares ends of texts."""
    layers = [f"model.layers.{n}.{name}" for n in (0, 1) for name in ("input_layernorm", "q_proj")]
    modules = ["model.embed_tokens", "model.norm", "lm_head", *layers]
    assert saved_names(["norm", "lm_head"], modules) == ["lm_head", "model.norm"]
    assert saved_names(["input_layernorm"], modules) == ["input_layernorm"]
    assert saved_names(["layers.1.input_layernorm"], modules) == ["1.input_layernorm"]
    assert saved_names([], modules) == []
