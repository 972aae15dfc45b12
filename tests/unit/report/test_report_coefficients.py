"""Coefficients in rows and columns, and in a few lines."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.large_models import llama_70b, mixtral
from shardmerge.algebra import expression as ex
from shardmerge.algebra.call_terms import setting_of
from shardmerge.algebra.coefficients import terms_of
from shardmerge.recipe.naming import short_names, shortener
from shardmerge.report.coefficients import Spread, coefficients
from shardmerge.report.explain import explain
from shardmerge.report.frame import frame_of
from shardmerge.report.summary import Line, summarize, write_lines


def source(model: str) -> ex.Source:
    return ex.Source(model, "file", "tensor", "F16", (2,))


class TestFrame:
    def test_llama_rows_follow_the_data_and_norms_come_last(self) -> None:
        frame = frame_of(reversed(llama_70b(3)))
        attention, mlp = (
            ("q_proj", "k_proj", "v_proj", "o_proj"),
            ("gate_proj", "up_proj", "down_proj"),
        )
        assert frame.modules[:7] == attention + mlp
        assert set(frame.modules[7:]) == {"input_layernorm", "post_attention_layernorm"}
        assert frame.outside == ("embed_tokens", "norm", "lm_head")
        assert (frame.layers, frame.experts) == (3, 0)
        assert frame.cells["model.layers.2.mlp.up_proj.weight"] == ("up_proj", 2)
        assert frame.cells["lm_head.weight"] == ("lm_head", None)

    def test_experts_share_rows_and_the_router_has_its_own(self) -> None:
        frame = frame_of(mixtral(2, experts=5))
        assert frame.experts == 5
        assert [row for row in frame.modules if "experts" in row] == [
            "experts.*.w1",
            "experts.*.w3",
            "experts.*.w2",
        ]
        assert frame.modules.index("gate") < frame.modules.index("experts.*.w1")
        where = frame.cells["model.layers.1.block_sparse_moe.experts.4.w2.weight"]
        assert where == ("experts.*.w2", 1)

    def test_a_bias_and_a_shared_expert_are_told_apart(self) -> None:
        layer = "model.layers.0."
        names = [
            f"{layer}self_attn.q_proj.weight",
            f"{layer}self_attn.q_proj.bias",
            f"{layer}mlp.experts.0.up_proj.weight",
            f"{layer}mlp.shared_expert.up_proj.weight",
        ]
        frame = frame_of(names)
        assert len(frame.modules) == len(set(frame.cells.values())) == 4
        assert frame.cells[names[1]] == ("q_proj.bias", 0)

    def test_two_stacks_of_layers_do_not_share_rows(self) -> None:
        names = [
            f"{stack}.layers.{i}.mlp.fc1.weight"
            for stack, count in (("vision_tower.encoder", 2), ("language_model.model", 4))
            for i in range(count)
        ]
        frame = frame_of(names)
        assert frame.modules == ("vision_tower fc1", "language_model fc1")
        assert frame.layers == 4
        assert len(set(frame.cells.values())) == len(names)

    def test_gpt2_has_layers_too(self) -> None:
        frame = frame_of(["wte.weight", "h.0.attn.c_attn.weight", "h.1.ln_1.weight", "ln_f.weight"])
        assert frame.modules == ("c_attn", "ln_1")
        assert frame.outside == ("wte", "ln_f")


class TestTerms:
    def test_a_sum_gives_its_terms(self) -> None:
        delta = ex.Delta(source("tuned"), source("base"), "F16")
        linear = ex.Linear(((1.0, source("own")), (0.25, delta)))
        assert terms_of(linear) == [["own", 1.0], ["tuned - base", 0.25]]

    def test_a_cast_is_no_term_and_sums_within_sums_are_multiplied_out(self) -> None:
        inner = ex.Linear(((0.5, source("a")), (0.5, source("b"))))
        outer = ex.Linear(((0.5, ex.Cast(inner, "F16")), (0.5, source("a"))))
        assert terms_of(outer) == [["a", 0.75], ["b", 0.25]]

    def test_a_method_that_is_no_sum_is_its_call_and_its_parameters(self) -> None:
        inputs = (source("base"), source("x"), source("y"))
        call = ex.Call(
            "ties", inputs, 0, (("lambda", 1.0),), (("weight", (None, 0.2, 0.7)),),
            models=("base", "x", "y"), output_shape=(2,),
        )  # fmt: skip
        assert terms_of(ex.Linear(((0.5, call),))) == [
            ["ties(base base, x, y)", 0.5],
            ["ties(base base, x, y): weight of x", 0.2],
            ["ties(base base, x, y): weight of y", 0.7],
            ["ties(base base, x, y): lambda", 1.0],
        ]

    def test_slerp_names_its_base_wherever_it_stands(self) -> None:
        inputs = (source("x"), source("base"))
        call = ex.Call("slerp", inputs, 1, (("t", 0.25),), models=("x", "base"), output_shape=(2,))
        assert dict(terms_of(call)) == {"slerp(base base, x)": 1.0, "slerp(base base, x): t": 0.25}

    def test_an_expression_that_has_a_call_twice_has_its_parameters_once(self) -> None:
        call = ex.Call("slerp", (source("x"), source("y")), 0, (("t", 0.25),), models=("x", "y"))
        both = ex.Linear(((0.5, call), (0.25, call)))
        assert terms_of(both) == [["slerp(base x, y)", 0.75], ["slerp(base x, y): t", 0.25]]

    def test_labels_of_parameters_are_told_from_models(self) -> None:
        label = "ties(base a/b, c: d): density of c: d"
        assert setting_of(label) == ("ties(base a/b, c: d)", "ties", "density", "c: d")
        for other in ("ties(a): x y", "no_method(a): t", "a - b", "lab/ties(x)", "ties(a)"):
            assert setting_of(other) is None

    def test_a_method_without_weights_is_one_term(self) -> None:
        inputs = (source("x"), source("y"))
        call = ex.Call("karcher", inputs, None, models=("x", "y"), output_shape=(2,))
        assert terms_of(call) == [["karcher(x, y)", 1.0]]


class TestCoefficients:
    def test_experts_are_a_mean_with_its_spread_and_absence_counts_as_nothing(self) -> None:
        layer = "model.layers.0.mlp.experts"
        found = coefficients(
            {
                f"{layer}.0.up_proj.weight": [["a", 1.0], ["b", 0.5]],
                f"{layer}.1.up_proj.weight": [["a", 1.0]],
            }
        )
        cell = found.cells["experts.*.up_proj", 0]
        assert cell == {"a": Spread(1.0, 1.0, 1.0), "b": Spread(0.25, 0.0, 0.5)}
        assert cell["b"].varies
        assert not cell["a"].varies

    def test_a_term_is_0_in_the_cells_that_lack_it(self) -> None:
        found = coefficients({"lm_head.weight": [["a", 1.0]], "norm.weight": [["b", 1.0]]})
        assert found.terms == ("a", "b")
        assert found.of("b") == {
            ("lm_head", None): Spread(0, 0, 0),
            ("norm", None): Spread(1, 1, 1),
        }


class TestSummary:
    def flagship(self) -> Any:
        (found,) = explain("config/recipes/miquplus-midnight-70b.yaml", {}, 80).models.values()
        return found

    @pytest.fixture(autouse=True)
    def _repository(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        monkeypatch.chdir(request.config.rootpath)

    def test_the_flagship_is_two_lines(self) -> None:
        shorten = shortener(
            short_names(
                [
                    "152334H/miqu-1-70b-sf",
                    "meta-llama/Llama-2-70b-hf",
                    "sophosympatheia/Midnight-Rose-70B-v2.0.3",
                ]
            )
        )
        first, rest = summarize(self.flagship(), shorten)
        assert first == Line(
            "8-71",
            ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            "miqu-1-70b-sf + g * (Midnight-Rose-70B-v2.0.3 - Llama-2-70b-hf), g in 0.0127..1",
        )
        assert rest == Line("", (), "miqu-1-70b-sf", rest=True)

    def test_the_flagships_gradient_is_mergekits(self) -> None:
        values = self.flagship().of(
            "sophosympatheia/Midnight-Rose-70B-v2.0.3 - meta-llama/Llama-2-70b-hf"
        )
        for layer in range(80):
            scaled = layer / 79 * 10
            expected = min(max(scaled - 1, 0), 1) * min(max(9 - scaled, 0), 1)
            assert values["v_proj", layer].mean == pytest.approx(expected, abs=1e-6)
            assert values["k_proj", layer].mean == 0
        assert values["lm_head", None].mean == 0

    def test_lines_wrap_but_never_within_a_product(self) -> None:
        lines = summarize(self.flagship(), lambda label: label)
        for width in range(60, 140, 7):
            written = write_lines(lines, width)
            assert all(len(line) <= width for line in written if "g * (" not in line)
            (product,) = [line for line in written if "g * (" in line]
            assert product.count("(") == product.count(")")

    def test_runs_of_one_formula_share_a_line(self) -> None:
        middle = [["a", 1.0], ["b", 1.0]]
        tensors = {
            f"model.layers.{i}.mlp.up_proj.weight": middle if i == 2 else [["a", 0.5], ["c", 0.5]]
            for i in range(5)
        }
        lines = summarize(coefficients(tensors), str)
        assert lines == [Line("2", ("up_proj",), "a + b"), Line("", (), "0.5 * a + 0.5 * c", True)]

    def test_negative_coefficients_and_differing_experts_are_told(self) -> None:
        layer = "model.layers.0.mlp"
        tensors = {
            f"{layer}.experts.0.up_proj.weight": [["a", 1.0], ["b - a", -0.5]],
            f"{layer}.experts.1.up_proj.weight": [["a", 1.0], ["b - a", 0.5]],
            "lm_head.weight": [["a", 1.0]],
        }
        lines = summarize(coefficients(tensors), str)
        assert lines[0].formula == "a + g * (b - a), g in -0.5..0.5 (experts differ)"
        assert lines[1].formula == "a"
        (line,) = summarize(coefficients({"w": [["a", 1.0], ["b", -0.5]]}), str)
        assert line.formula == "a - 0.5 * b"
