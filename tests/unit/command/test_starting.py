"""`shardmerge init`: what two models tell becomes a recipe, and nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.models import llama
from shardmerge.base.errors import UserError
from shardmerge.command import door
from shardmerge.command.explaining import explain_recipes
from shardmerge.command.models import look
from shardmerge.command.starting import write_project
from shardmerge.recipe.recipe import load_recipe


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "one", "two")):
        llama(tmp_path / name, seed, layers=2, files=2)
    return tmp_path


def init(*words: str) -> None:
    write_project(door.make_parser().parse_args(["init", *words]))


def card(folder: str, base: object) -> None:
    Path(folder, "README.md").write_text(f"---\nbase_model: {json.dumps(base)}\n---\n# A model\n")


class TestInit:
    def test_without_a_base(self, capsys: pytest.CaptureFixture[str]) -> None:
        init("one", "two")
        (stage,) = load_recipe("recipe.yaml").stages.values()
        assert (stage.method, stage.dtype) == ("slerp", "F16")
        assert "no common base is known" in capsys.readouterr().out
        # what it names are folders, so that an explanation needs no lock and assumes nothing
        explain_recipes(door.make_parser().parse_args(["explain", "recipe.yaml"]))
        assert "Tensors as in the models' folders." in capsys.readouterr().out

    @pytest.mark.parametrize("base", ["base", ["base"]])
    def test_the_base_that_both_cards_name(self, base: list[Any] | str) -> None:
        card("one", base)
        card("two", base)
        init("one", "two")
        text = Path("recipe.yaml").read_text()
        assert "merge_method: ties" in text and "base_model: base\n" in text

    @pytest.mark.parametrize("base", ["../base; rm", ["a", "b"], 3, "x" * 10_000 + " y"])
    def test_a_card_that_names_none_that_can_be(self, base: int | list[Any] | str) -> None:
        card("one", base)
        assert look("one", Path(), print).base is None

    def test_written_elsewhere(self, models: Path) -> None:
        init("one", "two", "--out", "project", "--method", "linear", "--name", "both")
        text = Path("project/recipe.yaml").read_text()
        assert "name: both\n" in text and "- model: ../one\n" in text
        assert Path("project/config.yaml").read_text().startswith("# docs: config/README.md")

    @pytest.mark.parametrize("file", ["recipe.yaml", "config.yaml"])
    def test_nothing_is_overwritten(self, file: str) -> None:
        Path(file).write_text("mine")
        with pytest.raises(UserError, match="nothing is overwritten"):
            init("one", "two")
        assert Path(file).read_text() == "mine"
        assert not ({"recipe.yaml", "config.yaml"} - {file}) & {p.name for p in Path().iterdir()}

    def test_models_that_do_not_fit(self, models: Path) -> None:
        llama(models / "deep", 5, layers=3, files=1)
        with pytest.raises(UserError, match="one has layers 2, deep has 3: they cannot be merged"):
            init("one", "deep")

    def test_mistakes(self) -> None:
        with pytest.raises(UserError, match="Did you mean 'two'"):
            init("one", "twoo")
        with pytest.raises(UserError, match="ties needs a base"):
            init("one", "two", "--method", "ties")
        with pytest.raises(UserError, match="Did you mean 'slerp'"):
            init("one", "two", "--method", "slrep")
        assert not Path("recipe.yaml").exists()
