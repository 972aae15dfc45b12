"""Stacks of layers are written out as plain slices."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardmerge.base.errors import UserError
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.report.explain import explain
from shardmerge.report.explain_view import explanation_text
from shardmerge.report.terminal import Terminal

A, B = "lab/a", "lab/b"


def document(entries: Any, method: str = "passthrough", **more: Any) -> str:
    return yaml.safe_dump({"merge_method": method, "stack": entries, **more}, sort_keys=False)


def slices(entries: Any, **more: Any) -> list[list[tuple[Any, ...]]]:
    """Return for each slice the (model, begin, end) of its sources."""
    (stage,) = parse_recipe(document(entries, **more), "x.yaml").stages.values()
    return [[(str(i.model), *i.layers) for i in piece.inputs] for piece in stage.slices]


def written(entries: Any, **more: Any) -> dict[str, Any]:
    """Return the document that is written beside the model."""
    return yaml.safe_load(parse_recipe(document(entries, **more), "x.yaml").text)


def of(model: str, begin: int, end: int, **more: Any) -> dict[str, Any]:
    return {"model": model, "layers": [begin, end], **more}


class TestEntries:
    def test_plain_layers(self) -> None:
        assert slices([of(A, 0, 4), of(B, 2, 6)]) == [[(A, 0, 4)], [(B, 2, 6)]]

    def test_each_layer_twice(self) -> None:
        found = slices([of(A, 0, 2), of(A, 2, 4, repeat=2)])
        assert [run for (run,) in found] == [
            *((A, 0, 2), (A, 2, 3), (A, 2, 3), (A, 3, 4), (A, 3, 4)),
        ]

    def test_blocks_three_times(self) -> None:
        found = slices([of(A, 0, 3, repeat=3, block=2)])
        assert [run[1:] for (run,) in found] == [(0, 2), (0, 2), (0, 2), (2, 3), (2, 3), (2, 3)]

    def test_interleaved_until_all_are_used(self) -> None:
        found = slices([{"interleave": [of(A, 0, 3), of(B, 1, 3)]}])
        assert [run for (run,) in found] == [
            *((A, 0, 1), (B, 1, 2), (A, 1, 2), (B, 2, 3), (A, 2, 3)),
        ]
        found = slices([{"interleave": [of(A, 0, 4), of(B, 0, 4)], "block": 2}])
        assert [run for (run,) in found] == [(A, 0, 2), (B, 0, 2), (A, 2, 4), (B, 2, 4)]

    def test_as_solar(self) -> None:
        """32 layers, twice without 8 of them, are 48."""
        assert slices([of(A, 0, 32, drop=8)]) == [[(A, 0, 24)], [(A, 8, 32)]]

    def test_average_of_overlapped_layers(self) -> None:
        entry = {"average": [of(A, 0, 6), of(B, 2, 8)], "overlap": 2}
        found = slices([entry], method="linear")
        assert found == [[(A, 0, 4)], [(A, 4, 6), (B, 2, 4)], [(B, 4, 8)]]
        pieces = written([entry], method="linear")["slices"]
        weights = [s["parameters"]["weight"] for piece in pieces for s in piece["sources"]]
        assert weights == [1.0, 0.5, 0.5, 1.0]

    def test_runs_that_go_on_are_joined(self) -> None:
        assert slices([{"interleave": [of(A, 0, 3)]}, of(B, 0, 1)]) == [[(A, 0, 3)], [(B, 0, 1)]]

    def test_gradients_keep_their_slices(self) -> None:
        with_gradient = of(A, 0, 2, parameters={"scale": [0.5, 1.0]})
        assert len(slices([{"interleave": [with_gradient]}])) == 2


class TestScales:
    SCALE = {"q_proj": "1/sqrt(2)", "k_proj": 0.5}  # noqa: RUF012

    def test_of_copies(self) -> None:
        found = written([of(A, 0, 1, repeat=2, scale=self.SCALE)])["slices"]
        first, copy = (piece["sources"][0] for piece in found)
        assert "parameters" not in first
        assert copy["parameters"]["scale"] == [
            {"filter": "q_proj", "value": 1 / math.sqrt(2)},
            {"filter": "k_proj", "value": 0.5},
            {"value": 1.0},
        ]

    def test_of_all(self) -> None:
        entry = of(A, 0, 1, repeat=2, scale=self.SCALE, scaled="all")
        first, copy = written([entry])["slices"]
        assert first == copy and "parameters" in first["sources"][0]


class TestShuffles:
    def runs(self, **more: Any) -> list[tuple[Any, ...]]:
        models = more.pop("models", [of(A, 0, 400), of(B, 0, 400, weight=3)])
        found = slices([{"shuffle": models, **more}])
        return [(m, n) for ((m, begin, end),) in found for n in range(begin, end)]

    def test_each_layer_is_from_a_model_by_weight(self) -> None:
        found = self.runs(seed=1)
        assert [layer for _, layer in found] == list(range(400))
        assert 60 < Counter(model for model, _ in found)[A] < 140

    def test_layers_that_are_drawn_come_twice_or_never(self) -> None:
        counts = Counter(
            layer for seed in range(40) for _, layer in self.runs(seed=seed, order="drawn")
        )
        assert self.runs(seed=1, order="drawn") == self.runs(seed=1, order="drawn")
        assert set(counts) == set(range(len(self.runs(seed=1))))
        seeds = [[layer for _, layer in self.runs(seed=s, order="drawn")] for s in range(5)]
        assert all(len(set(layers)) < len(layers) for layers in seeds)

    def test_an_unknown_order(self) -> None:
        with pytest.raises(UserError, match="`order` must be one of `kept`, `random`, `drawn`"):
            self.runs(order="any")

    def test_order_at_random_has_every_layer_once(self) -> None:
        layers = [layer for _, layer in self.runs(seed=1, order="random")]
        assert sorted(layers) == list(range(400)) != layers

    def test_seed_decides(self) -> None:
        assert self.runs(seed=1) == self.runs(seed=1) != self.runs(seed=2)

    def test_a_weight_of_0_is_never_taken(self) -> None:
        models = [of(A, 0, 50), of(B, 0, 50, weight=0)]
        assert {model for model, _ in self.runs(models=models)} == {A}


class TestText:
    def test_is_a_recipe_of_the_same_slices(self) -> None:
        text = document([of(A, 0, 2, repeat=2), {"shuffle": [of(A, 2, 9), of(B, 2, 9)]}])
        recipe = parse_recipe(text, "x.yaml")
        again = parse_recipe(recipe.text, "x.yaml")
        shown = [[(str(i.model), i.layers) for i in s.inputs] for s in again.stages["x"].slices]
        (stage,) = recipe.stages.values()
        assert shown == [[(str(i.model), i.layers) for i in s.inputs] for s in stage.slices]
        assert again.text == recipe.text and "stack" not in recipe.text and "&" not in recipe.text

    def test_other_documents_stay_as_they_are_written(self) -> None:
        plain = "# a comment\nname: soup\nmerge_method: linear\nmodels:\n- model: lab/a\n"
        plain += "  parameters: {weight: 1}\n"
        assert parse_recipe(plain, "x.yaml").text == plain
        both = parse_recipe(f"{plain}---\n{document([of(B, 0, 1)], name='s')}", "x.yaml")
        assert both.text.startswith(plain.partition("\n")[2]) and set(both.stages) == {"soup", "s"}


class TestMistakes:
    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([], "`stack` is empty"),
            ("x", "`stack` must be a list"),
            (["x"], "must be a mapping"),
            ([{"layers": [0, 1]}], "exactly one of"),
            ([{"model": A}], "with `model` and `layers`"),
            ([of(A, 3, 3)], "the first smaller"),
            ([of(A, 0, "x")], "must be a whole number"),
            ([of(A, 0, 3, repaet=2)], "unknown key 'repaet'"),
            ([of(A, 0, 3, drop=3)], "less than the layers"),
            ([of(A, 0, 3, repeat=10**9)], "4096 at most"),
            ([of(A, 0, 10**9, repeat=2)], "more than 4096 slices"),
            ([of(A, 0, 3, scale={"q": 1})], "no copies to scale"),
            ([of(A, 0, 3, repeat=2, scale={"q": "2"})], "must be a number"),
            ([{"average": [of(A, 0, 3)] * 2, "overlap": 1}], "needs `merge_method: linear`"),
            ([{"average": [of(A, 0, 3)] * 2, "overlap": 4}], "more than the layers"),
            ([{"shuffle": [of(A, 0, 3), of(B, 0, 2)]}], "give the same number of layers"),
            ([{"shuffle": [of(A, 0, 10**9)]}], "4096 layers at most"),
            ([{"interleave": [of(A, 0, 10**9)]}], "makes more than 4096 slices"),
        ],
    )
    def test_are_told_with_their_line(self, entries: Any, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            parse_recipe(document(entries), "x.yaml")
        assert caught.value.where.startswith("x.yaml:")

    def test_line_is_the_entrys(self) -> None:
        text = "merge_method: passthrough\nstack:\n- {model: a, layers: [0, 2]}\n- {layers: 1}\n"
        with pytest.raises(UserError) as caught:
            parse_recipe(text, "x.yaml")
        assert caught.value.where == "x.yaml:4"

    def test_scales_need_passthrough(self) -> None:
        with pytest.raises(UserError, match="passthrough"):
            slices([of(A, 0, 1, repeat=2, scale={"q": 1})], method="linear")

    def test_not_beside_slices(self) -> None:
        with pytest.raises(UserError, match="either `stack` or `models`"):
            slices([of(A, 0, 1)], models=[{"model": A}])


def test_explain_draws_the_stack(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    entry = {"average": [of(A, 0, 6), of(B, 2, 8)], "overlap": 2}
    path.write_text(document([entry], method="linear", name="s"))
    text = explanation_text(explain(str(path), {}), Terminal(width=100, colour=False))
    assert "stack of 10 layers" in text
    rows = [line.split() for line in text.splitlines() if "#" in line]
    assert [row[:2] for row in rows] == [
        *(["6-9", "....####"], ["4-5", "..####.."], ["0-3", "####...."]),
    ]
    assert rows[1][2:] == ["a", "4-5", "+", "b", "2-3"]
