"""A recipe with gaps becomes recipes: values stay values, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from shardmerge.base.errors import UserError
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.sweep.template import Template

TEXT = """\
merge_method: ${method}  # which
base_model: owner/base
models:
  - model: owner/tuned-${size}
    parameters: {weight: [0, ${middle}, 0], density: ${density}}
dtype: float16
"""
VALUES = {"method": "ties", "size": "7b", "middle": 0.3, "density": 0.5}


def rendered(text: str, **values: Any) -> Any:
    return yaml.safe_load(Template(text, "own.yaml").render(values))


class TestRender:
    def test_is_a_recipe(self) -> None:
        text = Template(TEXT, "dir/own.yaml").render(VALUES)
        (stage,) = parse_recipe(text, "recipe.yaml").stages.values()
        assert stage.method == "ties"
        assert stage.inputs[0].model.model == "owner/tuned-7b"
        assert yaml.safe_load(text)["models"][0]["parameters"]["weight"] == [0, 0.3, 0]

    def test_name_is_the_templates_so_that_random_numbers_stay(self) -> None:
        assert rendered(TEXT, **VALUES)["name"] == "own"

    def test_own_names_stay(self) -> None:
        assert rendered("name: mine\nmerge_method: ${m}\n", m="linear")["name"] == "mine"

    def test_same_text_each_time(self) -> None:
        assert Template(TEXT, "x.yaml").render(VALUES) == Template(TEXT, "x.yaml").render(VALUES)

    @pytest.mark.parametrize(
        "value",
        ["a: b", "x\n---\nname: evil", "[1, 2]", "!!python/object:os.system", "&a *a", "# no",
         "${other}", "\ue000w\ue001", "yes", "1e3", "", None, True, 1e-5, [1, [2, {"a": "b: c"}]],
         {"weight": 0.5, "filter": "x: y"}],
    )  # fmt: skip
    def test_value_is_read_back_as_itself(self, value: Any) -> None:
        for text in ("merge_method: ${w}\n", "merge_method: {a: [${w}]}\n", "a: '${w}'\n"):
            found = rendered(text, w=value)
            assert value in (found.get("merge_method"), found.get("a")) or found[
                "merge_method"
            ] == {"a": [value]}
            assert len(list(yaml.safe_load_all(Template(text, "x").render({"w": value})))) == 1

    def test_text_within_a_text_stays_a_text(self) -> None:
        assert rendered("model: a/${w}\n", w="x: [y]\n")["model"] == "a/x: [y]\n"

    def test_list_within_a_text_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"x\.yaml:2: `\$\{w\}` stands within a text"):
            Template("a: 1\nmodel: a/${w}\n", "x.yaml").render({"w": [1]})

    def test_documents_stay_documents(self) -> None:
        text = "name: a\nx: ${w}\n---\nname: b\ny: ${w}\n"
        assert list(yaml.safe_load_all(Template(text, "x").render({"w": [1, 2]}))) == [
            {"name": "a", "x": [1, 2]},
            {"name": "b", "y": [1, 2]},
        ]


class TestMistakes:
    def test_gap_without_a_variable(self) -> None:
        with pytest.raises(UserError, match=r"x\.yaml:2: .*\$\{wieght\}.*\n.*weight"):
            Template("a: 1\nb: ${wieght}\n", "x.yaml").check({"weight"}, "space")

    def test_variable_without_a_gap(self) -> None:
        with pytest.raises(UserError, match=r"space\.v: .*not in x\.yaml"):
            Template("a: ${w}\n", "x.yaml").check({"w": 1, "v": 2}, "space")

    def test_key(self) -> None:
        with pytest.raises(UserError, match="stands for a key"):
            Template("a:\n  ${w}: 1\n", "x.yaml")

    def test_odd_name(self) -> None:
        with pytest.raises(UserError, match="is no variable"):
            Template("a: 'x ${1 + 1}'\n", "x.yaml")

    def test_marks_of_ours(self) -> None:
        with pytest.raises(UserError, match=r"U\+E000"):
            Template("a: \ue000w\ue001\n", "x.yaml")
