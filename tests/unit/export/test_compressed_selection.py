"""Which weights are quantised, and which must share a scale, by names and shapes alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.export.compressed import Compressed
from shardmerge.export.registry import form_of
from shardmerge.export.schemes import SCHEMES, scheme_of
from shardmerge.export.selection import (
    IGNORED,
    chosen_options,
    fused_with,
    partners,
    select,
    with_options,
)

OPTIONS: dict[str, Any] = {"schemes": [], "ignore": None, "group_size": 128}
ATTENTION = "model.layers.0.self_attn."


def selected(names: dict[str, tuple[int, ...]], scheme: str = "w4a16", **options: Any) -> Any:
    chosen = chosen_options(scheme_of(scheme), OPTIONS | options)
    made = with_options(scheme_of(scheme), chosen)
    return select({n: ("BF16", shape) for n, shape in names.items()}, made, chosen["ignore"])


@pytest.mark.parametrize(
    "name",
    [
        *("lm_head", "model.embed_tokens", "transformer.wte", "score", "encoder.embed_tokens"),
        *("model.layers.0.mlp.gate", "model.layers.1.block_sparse_moe.gate"),
        *("model.layers.0.mlp.shared_expert_gate", "model.layers.3.feed_forward.router"),
        *("model.visual.blocks.0.attn.qkv", "model.vision_tower.layers.0.mlp.fc1"),
        *("audio_tower.layers.0.fc1", "multi_modal_projector.linear_1", "model.layers.0.q_norm"),
    ],
)
def test_modules_that_stay_as_they_are(name: str) -> None:
    found = selected({f"{name}.weight": (256, 256)})
    assert found.weights == () and "ignored by re:" in found.kept[f"{name}.weight"]


@pytest.mark.parametrize(
    "name",
    [
        *(f"{ATTENTION}q_proj", "model.layers.0.mlp.gate_proj", "model.layers.9.mlp.down_proj"),
        *("model.layers.0.mlp.experts.7.up_proj", "model.layers.0.block_sparse_moe.experts.1.w1"),
        *("model.layers.0.mlp.shared_expert.gate_proj", "model.layers.0.linear_attn.in_proj_qkvz"),
    ],
)
def test_weights_of_linear_layers(name: str) -> None:
    assert selected({f"{name}.weight": (256, 256)}).weights == (f"{name}.weight",)


def test_reasons_of_what_is_kept() -> None:
    tables = {
        "a.down_proj.weight": (256, 160),
        "a.experts.gate_up_proj": (8, 256, 256),
        "a.conv1d.weight": (256, 1, 4),
        "2_Dense/linear.weight": (256, 256),
        "a.o_proj.bias": (256,),
    }
    found = selected(tables)
    assert found.weights == ()
    assert found.kept == {
        "a.down_proj.weight": "its 160 columns are no multiple of 128",
        "a.experts.gate_up_proj": "experts in one tensor of three dimensions",
        "a.conv1d.weight": "no weight of a linear layer",
        "2_Dense/linear.weight": "of a module beside the model",
    }
    # what is no multiple is a linear layer, so the model's config must say that it is not quantised
    assert "a.down_proj" in found.ignore and set(IGNORED) < set(found.ignore)
    assert selected(tables, group_size=32).weights == ("a.down_proj.weight",)


def test_a_list_takes_the_place_of_what_is_usual() -> None:
    names = {f"{ATTENTION}q_proj.weight": (256, 256), "lm_head.weight": (256, 256)}
    assert selected(names, ignore=["re:.*q_proj"]).weights == ("lm_head.weight",)
    assert selected(names, ignore=[f"{ATTENTION}q_proj", "lm_head"]).weights == ()


def test_numbers_that_are_no_floats_stay() -> None:
    scheme = replace(scheme_of("fp8-dynamic"))
    found = select({"a.weight": ("I8", (4, 4))}, scheme, [])
    assert found.kept == {"a.weight": "of type I8"}


def checked(names: dict[str, tuple[int, ...]], scheme: str = "w4a16", **options: Any) -> str | None:
    """Return what is told of a model with these tensors before any job."""
    rows = {name: ("BF16", shape) for name, shape in names.items()}
    described = SimpleNamespace(shards=[SimpleNamespace(file="model.safetensors", tensors=rows)])
    return form_of(scheme).check_model(OPTIONS | options, "m", lambda: described)


class TestBeforeAnyJob:
    def test_nothing_to_quantise(self) -> None:
        with pytest.raises(UserError, match="no matrix that w4a16 can quantise: its 100 columns"):
            checked({"a.weight": (4, 100)})

    @pytest.mark.parametrize("scheme", ["w4a16", "fp8-dynamic"])
    def test_matrices_of_inputs_and_outputs(self, scheme: str) -> None:
        """As those of GPT-2 are: the bias tells it where the matrix is no square."""
        attention = {"h.0.attn.c_attn.weight": (256, 768), "h.0.attn.c_attn.bias": (768,)}
        with pytest.raises(UserError, match=r"'h\.0\.attn\.c_attn' .* is no linear layer"):
            checked(attention, scheme)
        other = {"a.up_proj.weight": (768, 256), "a.up_proj.bias": (768,)}
        assert checked(other, scheme) is None
        assert checked(attention | other, scheme, ignore=["re:.*c_attn"]) is None

    def test_stacked_experts_are_told(self) -> None:
        tables = {"a.up_proj.weight": (256, 256), "a.experts.down_proj": (3, 256, 256)}
        told = checked(tables, "nvfp4a16")
        assert told and "nvfp4a16 leaves 75% of the model as it is: experts in one tensor" in told
        assert checked({"a.up_proj.weight": (256, 256), "a.conv1d.weight": (256, 1, 4)}) is None


class TestSharedScales:
    @pytest.mark.parametrize(
        ("name", "others"),
        [
            ("self_attn.q_proj", ["self_attn.k_proj", "self_attn.v_proj"]),
            ("mlp.up_proj", ["mlp.gate_proj"]),
            ("moe.experts.3.w3", ["moe.experts.3.w1"]),
            ("self_attn.q_a_proj", ["self_attn.kv_a_proj_with_mqa"]),
            ("self_attn.o_proj", []),
            ("mlp.down_proj", []),
        ],
    )
    def test_what_runs_as_one_matrix(self, name: str, others: list[str]) -> None:
        found = list(fused_with(f"model.layers.0.{name}.weight"))
        assert found == [f"model.layers.0.{other}.weight" for other in others]

    def test_partners_are_those_that_are_quantised(self) -> None:
        q, k, v = (f"{ATTENTION}{p}_proj.weight" for p in "qkv")
        found = selected({q: (256, 256), k: (64, 256), v: (64, 256)}, "nvfp4a16")
        assert partners([q], found) == {k, v} and partners([q, k, v], found) == set()
        without = selected({q: (256, 256), k: (64, 256)}, "nvfp4a16", ignore=["re:.*k_proj"])
        assert partners([q], without) == set()


class TestForm:
    def test_schemes_that_need_calibration_are_refused_with_a_reason(self) -> None:
        refused = [s for s in SCHEMES if s.calibrated]
        assert {s.name for s in refused} == {"fp8", "nvfp4", "awq", "gptq"}
        for scheme in refused:
            told = f"{scheme.name} cannot be made from weights alone: .*text.*"
            with pytest.raises(UserError, match=told) as caught:
                Compressed(scheme).check(OPTIONS)
            assert not scheme_of(scheme.instead).calibrated
            assert f"Write {scheme.instead}" in str(caught.value.hint)

    def test_a_broken_pattern(self) -> None:
        with pytest.raises(UserError, match="no regular expression"):
            form_of("w4a16").check(OPTIONS | {"ignore": ["re:("]})

    def test_identity_has_what_counts(self) -> None:
        form, other = form_of("w4a16"), form_of("nvfp4a16")
        small = OPTIONS | {"group_size": 32}
        assert form.identity(OPTIONS, "w4a16") != form.identity(small, "w4a16")
        assert other.identity(OPTIONS, "nvfp4a16") == other.identity(small, "nvfp4a16")
        fewer = OPTIONS | {"ignore": ["lm_head"]}
        assert other.identity(OPTIONS, "nvfp4a16") != other.identity(fewer, "nvfp4a16")
