"""Recipes: what is read, and what every mistake is told as."""

from __future__ import annotations

import pytest

from shardmerge.errors import UserError
from shardmerge.recipe import parse_recipe
from shardmerge.registry import Parameter

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
    def test_documents(self):
        recipe = parse_recipe(GOOD, "x/r.yaml")
        assert list(recipe.stages) == ["donor", "r"]
        assert recipe.final == ("r",)
        assert [str(s) for s in recipe.sources] == ["org/base", "org/tuned"]

    def test_order_does_not_matter(self):
        first, second = GOOD.split("---\n")
        recipe = parse_recipe(f"{second}---\n{first}", "r.yaml")
        assert list(recipe.stages) == ["donor", "r"]

    def test_base_model_is_an_input(self):
        stage = parse_recipe(GOOD, "r.yaml").stages["donor"]
        assert [str(i.model) for i in stage.inputs] == ["org/tuned", "org/base"]

    def test_text_is_kept_as_written(self):
        stages = parse_recipe(GOOD, "r.yaml").stages
        assert stages["donor"].text == GOOD.split("---\n")[0]
        assert stages["r"].text == GOOD.split("---\n")[1]

    def test_parameter_of_another_method_is_a_warning(self):
        text = GOOD.replace("{weight: 0.5}", "{weight: 0.5, t: 0.3}")
        (warning,) = parse_recipe(text, "r.yaml").warnings
        assert warning.check == "ignored-parameter"
        assert warning.where == "r.yaml:6" and "has no parameter 't'" in warning.message

    def test_parameter_that_is_accepted_and_not_used_is_a_warning(self):
        text = GOOD.replace("{weight: 0.5}", "{weight: 0.5, density: 0.3}")
        (warning,) = parse_recipe(text, "r.yaml").warnings
        assert "does not use its parameter 'density'" in warning.message


class TestMistakes:
    @pytest.mark.parametrize(
        ("old", "new", "line", "says"),
        [
            ("merge_method: linear", "merge_metod: linear", 9, "'merge_method'"),
            ("merge_method: linear", "merge_method: linaer", 9, "'linear'"),
            ("{weight: 0.5}", "{wieght: 0.5}", 6, "'weight'"),
            ("dtype: float16", "dtype: float8", 7, "'float64'"),
            ("name: donor", "name: a/b", 1, "cannot be a folder's name"),
            ("{weight: 0.5}", "[1, 2]", 6, "must be a mapping"),
            ("  - model: org/tuned", "  - modle: org/tuned", 5, "'model'"),
            ("model: org/tuned", "model: a@b@c", 5, "not a model reference"),
            ("base_model: org/base\n", "", 3, "needs a `base_model`"),
            ("name: donor", "name: donor\nname: twice", 2, "stands twice"),
            ("          value: [0, 1]", "          value: {a: 1}", 15, "must be a number"),
            ("        - value: 1", "        - 1", 16, "mixes plain values and filters"),
            ("merge_method: linear", "name: donor\nmerge_method: linear", 9, "second document"),
            ("merge_method: linear", "merge_method: [", 11, ""),
        ],
    )
    def test_place_and_hint(self, old, new, line, says):
        assert old in GOOD
        error = fails(GOOD.replace(old, new, 1))
        assert error.where == f"r.yaml:{line}"
        assert says in str(error)

    def test_cycle(self):
        text = GOOD.replace("model: org/tuned", "model: r")
        assert "in a circle: donor -> r -> donor" in str(fails(text))

    def test_duplicate_model(self):
        text = GOOD.replace("- model: donor", "- model: org/base")
        assert "listed twice" in str(fails(text))

    def test_nothing_but_models_slices_modules(self):
        assert "exactly one of" in str(fails("merge_method: linear\n"))

    def test_empty_file(self):
        assert "no document" in str(fails("# nothing\n"))

    def test_python_tags_are_refused(self):
        text = GOOD.replace("org/tuned", "!!python/object/apply:os.system ['true']")
        assert "python" in str(fails(text))

    def test_alias_bomb(self):
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
        assert "values" in str(fails("\n".join(lines)))


class TestParameters:
    def setting(self, value: str):
        text = GOOD.replace("{weight: 0.5}", f"{{weight: {value}}}")
        return parse_recipe(text, "r.yaml").stages["donor"].inputs[0].parameters["weight"]

    weight = Parameter("weight", float)

    @pytest.mark.parametrize(
        ("t", "value"), [(0, 0), (0.25, 0.5), (0.5, 1), (0.75, 3), (1, 5), (0.1, 0.2)]
    )
    def test_gradient(self, t, value):
        assert self.setting("[0, 1, 5]").value("x", t, self.weight) == pytest.approx(value)

    def test_first_match_wins_and_case_counts(self):
        setting = self.setting("[{filter: proj, value: 1}, {filter: q_proj, value: 2}]")
        assert setting.value("a.q_proj", 0, self.weight) == 1
        assert setting.value("a.Q_PROJ", 0, self.weight) is None

    def test_star_matches_all(self):
        assert self.setting("[{filter: '*', value: 3}]").value("any", 0, self.weight) == 3

    def test_scientific_text_is_a_number(self):
        assert self.setting("1e-3").value("x", 0, self.weight) == 0.001

    @pytest.mark.parametrize("value", ["yes please", ".nan", "[1, two]"])
    def test_not_a_number(self, value):
        with pytest.raises(UserError):
            self.setting(value).value("x", 0, self.weight)
