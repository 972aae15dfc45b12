"""Recipes: what is read, and what every mistake is told as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.methods import registry
from shardmerge.methods.registry import Parameter
from shardmerge.recipe.recipe import chosen, load_recipe, parse_recipe

GOOD = """\
name: donor
merge_method: task_arithmetic
base_model: org/base
models:
  - model: org/tuned
    parameters: {weight: 0.5}
dtype: float16
---
merge_method: linear
models:
  - model: org/base
    parameters:
      weight:
        - filter: v_proj
          value: [0, 1]
        - value: 1
  - model: donor
    parameters: {weight: 1e-1}
"""


def fails(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "r.yaml")
    return caught.value


class TestReading:
    def test_documents(self) -> None:
        recipe = parse_recipe(GOOD, "x/r.yaml")
        assert list(recipe.stages) == ["donor", "r"]
        assert recipe.final == ("r",)
        assert [str(s) for s in recipe.sources] == ["org/base", "org/tuned"]

    def test_order_does_not_matter(self) -> None:
        first, second = GOOD.split("---\n")
        recipe = parse_recipe(f"{second}---\n{first}", "r.yaml")
        assert list(recipe.stages) == ["donor", "r"]

    def test_base_model_is_an_input(self) -> None:
        stage = parse_recipe(GOOD, "r.yaml").stages["donor"]
        assert [str(i.model) for i in stage.inputs] == ["org/tuned", "org/base"]

    def test_text_is_kept_as_written(self) -> None:
        stages = parse_recipe(GOOD, "r.yaml").stages
        assert stages["donor"].text == GOOD.split("---\n")[0]
        assert stages["r"].text == GOOD.split("---\n")[1]

    def test_parameter_of_another_method_is_a_warning(self) -> None:
        text = GOOD.replace("{weight: 0.5}", "{weight: 0.5, t: 0.3}")
        (warning,) = parse_recipe(text, "r.yaml").warnings
        assert warning.check == "ignored-parameter"
        assert warning.where == "r.yaml:6" and "has no parameter 't'" in warning.message

    def test_parameter_that_is_accepted_and_not_used_is_a_warning(self) -> None:
        text = GOOD.replace("{weight: 0.5}", "{weight: 0.5, density: 0.3}")
        (warning,) = parse_recipe(text, "r.yaml").warnings
        assert "does not use its parameter 'density'" in warning.message


class TestBeyondBounds:
    """Where mergekit takes the nearer bound it counts here too, and is told."""

    def text(self, method: str, density: object) -> str:
        text = GOOD.replace("task_arithmetic", method, 1)
        return text.replace("{weight: 0.5}", f"{{weight: 0.5, density: {density}}}")

    def values(self, text: str) -> list[float]:
        stage = parse_recipe(text, "r.yaml").stages["donor"]
        setting = stage.inputs[0].parameters["density"]
        density = registry.method(stage.method).parameter("density")
        return [setting.value("x", t / 4, density) for t in range(5)]

    @pytest.mark.parametrize(
        ("density", "values"),
        [
            (1.2, [1.0] * 5),
            (-0.2, [0.0] * 5),
            ([-1, 1, 3], [0, 0, 1, 1, 1]),
            ([0, 2], [0, 0.5, 1, 1, 1]),
        ],
    )
    def test_the_nearer_bound_counts(self, density: float | list[Any], values: list[Any]) -> None:
        text = self.text("ties", density)
        (warning,) = parse_recipe(text, "r.yaml").warnings
        assert (warning.check, warning.where) == ("clamped-parameter", "r.yaml:6")
        assert "'density' is beyond 0 to 1" in warning.message
        assert self.values(text) == values

    def test_within_bounds_nothing_is_told(self) -> None:
        assert not parse_recipe(self.text("ties", [0, 1]), "r.yaml").warnings

    @pytest.mark.parametrize(("method", "density"), [("dare_ties", -0.1), ("ties", "much")])
    def test_what_mergekit_refuses_too(self, method: str, density: float | str) -> None:
        with pytest.raises(UserError, match=r"r\.yaml:6: parameter 'density' must be"):
            self.values(self.text(method, density))


class TestIgnored:
    """What mergekit passes over is passed over here too, and told."""

    @pytest.mark.parametrize(
        ("old", "new", "line", "says"),
        [
            ("dtype: float16", "random_seed: 7", 7, "'random_seed' in a recipe document is ign"),
            ("dtype: float16", "density: 0.5", 7, "it belongs under `parameters`"),
            ("dtype: float16", "pad_to_multiple_of: 8", 7, "it belongs under `tokenizer`"),
            ("- model: org/tuned", "- revision: v2\n    model: org/tuned", 5, "NAME@REVISION"),
            ("- filter: v_proj", "- name: x\n          filter: v_proj", 14, "'name' in an entry"),
        ],
    )
    def test_key(self, old: str, new: str, line: int, says: str) -> None:
        (warning,) = parse_recipe(GOOD.replace(old, new, 1), "r.yaml").warnings
        assert (warning.check, warning.where) == ("ignored-key", f"r.yaml:{line}")
        assert says in warning.message

    def test_parameter_of_no_method(self) -> None:
        text = GOOD.replace("{weight: 0.5}", "{weight: 0.5, smooth: false}")
        (warning,) = parse_recipe(text, "r.yaml").warnings
        assert (warning.check, warning.where) == ("ignored-parameter", "r.yaml:6")

    def test_in_many_places_is_told_of_the_first(self) -> None:
        text = GOOD.replace("  - model:", "  - trust: true\n    model:")
        (warning,) = parse_recipe(text, "r.yaml").warnings
        assert warning.where == "r.yaml:5"


class TestNames:
    @pytest.mark.parametrize(
        ("written", "name"),
        [
            ("Lab Model (v2)", "Lab-Model-v2"),
            ("lab/Model", "lab-Model"),
            ("../../etc", "etc"),
            (".hidden", "hidden"),
            ("模型", "model-模型"),
            ("/", "model"),
        ],
    )
    def test_a_name_that_no_folder_can_have(self, written: str, name: str) -> None:
        text = GOOD.replace("name: donor", f'name: "{written}"').replace(
            "model: donor", f'model: "{written}"'
        )
        recipe = parse_recipe(text, "r.yaml")
        assert list(recipe.stages) == [name, "r"]
        assert str(recipe.stages["r"].inputs[1].model) == name
        (warning,) = recipe.warnings
        assert (warning.check, warning.where) == ("renamed", "r.yaml:1")

    def test_every_reference_follows(self) -> None:
        text = GOOD.replace("name: donor", "name: a/b").replace(
            "model: donor", "model: a/b+lab/lora"
        )
        text += "base_model: a/b\ntokenizer: {source: a/b, tokens: {x: {source: a/b}}}\n"
        stage = parse_recipe(text, "r.yaml").stages["r"]
        assert str(stage.base_model) == "a-b"
        assert [str(i.model) for i in stage.inputs] == ["org/base", "a-b+lab/lora", "a-b"]
        assert str(stage.tokenizer.source) == str(stage.tokenizer.rules[0].model) == "a-b"

    def test_names_that_become_one(self) -> None:
        text = GOOD.replace("merge_method: linear", "name: don/or\nmerge_method: linear")
        error = fails(text.replace("donor", "don or"))
        assert error.where == "r.yaml:9" and "a second document is named 'don-or'" in str(error)

    def test_the_file_s_own(self) -> None:
        recipe = parse_recipe(GOOD, "downloads/merge config (1).yaml")
        assert recipe.final == ("merge-config-1",) and not recipe.warnings

    def test_two_without(self) -> None:
        error = fails(GOOD.replace("name: donor\n", ""))
        assert "a second document has no `name` (the first: r.yaml:1)" in error.message


class TestChosen:
    def recipes(self, *paths: str) -> list[Any]:
        return [parse_recipe(GOOD.replace("name: donor", f"name: {p[0]}donor").replace(
            "model: donor", f"model: {p[0]}donor"), p) for p in paths]  # fmt: skip

    def test_final_or_by_name(self) -> None:
        a, b = recipes = self.recipes("a/x.yaml", "b/y.yaml")
        assert chosen(recipes, "final") == {"x": a, "y": b}
        assert chosen(recipes, ["bdonor", "final"]) == {"x": a, "bdonor": b, "y": b}

    def test_two_of_one_name(self) -> None:
        recipes = self.recipes("a/merge.yaml", "b/merge.yaml")
        with pytest.raises(UserError, match=r"'merge' is also in a/merge\.yaml") as caught:
            chosen(recipes, "final")
        assert caught.value.where == "b/merge.yaml:9" and "give it a `name`" in caught.value.hint
        assert list(chosen(recipes, ["adonor", "bdonor"])) == ["adonor", "bdonor"]

    def test_unknown(self) -> None:
        with pytest.raises(UserError, match="no recipe has a document named 'adoner'") as caught:
            chosen(self.recipes("a/x.yaml"), ["adoner"])
        assert caught.value.hint == "Did you mean 'adonor'?"


class TestYaml:
    @pytest.mark.parametrize("start", ["", "\ufeff", "---\n", "# a comment\n\n"])
    @pytest.mark.parametrize("end", ["", "\n", "---\n", "...\n"])
    @pytest.mark.parametrize("line", ["\n", "\r\n"])
    def test_starts_and_ends(self, start: str, end: str, line: str, tmp_path: Path) -> None:
        path = tmp_path / "r.yaml"
        path.write_bytes((start + GOOD + end).replace("\n", line).encode())
        recipe = load_recipe(path)
        assert [s.method for s in recipe.stages.values()] == ["task_arithmetic", "linear"]
        assert "\r" not in recipe.text

    def test_merged_keys_are_overridden_and_aliased(self) -> None:
        text = """\
merge_method: ties
base_model: a
models:
  - model: b
    parameters: &p
      <<: {weight: 0.5, density: 0.75}
      weight: 0.25
  - model: c
    parameters: *p
"""
        first, last, _ = parse_recipe(text, "r.yaml").stages["r"].inputs
        assert first.parameters == last.parameters
        values = {name: s.rules[0].value for name, s in first.parameters.items()}
        assert values == {"weight": 0.25, "density": 0.75}

    def test_a_key_twice(self) -> None:
        error = fails(GOOD.replace("{weight: 0.5}", "\n      weight: 0.5\n      weight: 0.7"))
        assert error.where == "r.yaml:8" and "first in line 7" in error.message
        assert "mergekit would use this one" in error.hint


class TestMistakes:
    @pytest.mark.parametrize(
        ("old", "new", "line", "says"),
        [
            ("merge_method: linear", "merge_metod: linear", 9, "'merge_method'"),
            ("merge_method: linear", "merge_method: linaer", 9, "'linear'"),
            ("{weight: 0.5}", "{wieght: 0.5}", 6, "'weight'"),
            ("dtype: float16", "dtype: float8", 7, "Known here: bfloat16, float16"),
            ("{weight: 0.5}", "{weights: 0.5}", 6, "'weight'"),
            ("{weight: 0.5}", "[1, 2]", 6, "must be a mapping"),
            ("  - model: org/tuned", "  - modle: org/tuned", 5, "'model'"),
            ("model: org/tuned", "model: a@b@c", 5, "not a model reference"),
            ("base_model: org/base\n", "", 3, "needs a `base_model`"),
            ("name: donor", "name: donor\nname: twice", 2, "given twice"),
            ("          value: [0, 1]", "          value: {a: 1}", 15, "must be a number"),
            ("        - value: 1", "        - 1", 16, "mixes plain values and filters"),
            ("merge_method: linear", "name: donor\nmerge_method: linear", 9, "second document"),
            ("merge_method: linear", "merge_method: [", 11, ""),
        ],
    )
    def test_place_and_hint(self, old: str, new: str, line: int, says: str) -> None:
        assert old in GOOD
        error = fails(GOOD.replace(old, new, 1))
        assert error.where == f"r.yaml:{line}"
        assert says in str(error)

    def test_cycle(self) -> None:
        text = GOOD.replace("model: org/tuned", "model: r")
        assert "in a circle: donor -> r -> donor" in str(fails(text))

    def test_repeated_constants(self) -> None:
        """Recipes define constants as anchors under one key that means nothing."""
        text = "const: &A 0.25\nconst: &B 0.75\n" + GOOD.replace("weight: 0.5", "weight: *B")
        found = parse_recipe(text, "r.yaml")
        assert [w.check for w in found.warnings] == ["ignored-key"]

    def test_duplicate_model(self) -> None:
        text = GOOD.replace("- model: donor", "- model: org/base")
        assert "listed twice" in str(fails(text))

    def test_nothing_but_models_slices_modules(self) -> None:
        assert "exactly one of" in str(fails("merge_method: linear\n"))

    def test_empty_file(self) -> None:
        assert "no document" in str(fails("# nothing\n"))

    def test_python_tags_are_refused(self) -> None:
        text = GOOD.replace("org/tuned", "!!python/object/apply:os.system ['true']")
        assert "python" in str(fails(text))

    def test_alias_bomb(self) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
        assert "values" in str(fails("\n".join(lines)))


class TestParameters:
    def setting(self, value: str) -> Any:
        text = GOOD.replace("{weight: 0.5}", f"{{weight: {value}}}")
        return parse_recipe(text, "r.yaml").stages["donor"].inputs[0].parameters["weight"]

    weight = Parameter("weight", float)

    @pytest.mark.parametrize(
        ("t", "value"), [(0, 0), (0.25, 0.5), (0.5, 1), (0.75, 3), (1, 5), (0.1, 0.2)]
    )
    def test_gradient(self, t: float | int, value: float | int) -> None:
        assert self.setting("[0, 1, 5]").value("x", t, self.weight) == pytest.approx(value)

    def test_first_match_wins_and_case_counts(self) -> None:
        setting = self.setting("[{filter: proj, value: 1}, {filter: q_proj, value: 2}]")
        assert setting.value("a.q_proj", 0, self.weight) == 1
        assert setting.value("a.Q_PROJ", 0, self.weight) is None

    def test_star_matches_all(self) -> None:
        assert self.setting("[{filter: '*', value: 3}]").value("any", 0, self.weight) == 3

    def test_scientific_text_is_a_number(self) -> None:
        assert self.setting("1e-3").value("x", 0, self.weight) == 0.001

    @pytest.mark.parametrize("value", ["yes please", ".nan", "[1, two]"])
    def test_not_a_number(self, value: str) -> None:
        with pytest.raises(UserError):
            self.setting(value).value("x", 0, self.weight)
