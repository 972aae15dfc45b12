"""docs/mergekit.md names all that the installed mergekit takes."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from shardmerge.recipe.document import DOCUMENT_KEYS

config = pytest.importorskip("mergekit.config")
options = pytest.importorskip("mergekit.options")
PAGE = (Path(__file__).parents[2] / "docs" / "mergekit.md").read_text(encoding="utf-8")
#: Commands that the page is to speak of in whole.
_COMMANDS = {
    script.name: script
    for script in entry_points(group="console_scripts")
    if script.name.startswith("mergekit-") and script.name != "mergekit-legacy"
}
#: Which models, and where the result goes: what a recipe and `results` say.
_OF_COURSE = {"--model", "--base-model", "--out-path"}


class TestPage:
    def test_keys_of_a_recipe(self) -> None:
        keys = set(config.MergeConfiguration.model_fields)
        assert keys <= set(DOCUMENT_KEYS)
        keys |= set(config.OutputSliceDefinition.model_fields) - {"sources"}
        for key in keys:
            assert f"`{key}`" in PAGE, key

    def test_options(self) -> None:
        for name in options.MergeOptions.model_fields:
            assert f"`--{name.replace('_', '-')}`" in PAGE, name

    @pytest.mark.parametrize("script", sorted(_COMMANDS))
    def test_options_of_commands(self, script: str) -> None:
        """As its source has them, since a command may need packages that are not here."""
        source = find_spec(_COMMANDS[script].module).origin
        found = re.findall(r'"(--[a-z][\w-]*)', Path(source).read_text(encoding="utf-8"))
        assert found or script == "mergekit-yaml"
        for name in sorted({*found} - _OF_COURSE):
            assert re.search(rf"{name}(?![\w-])", PAGE), name

    def test_commands(self) -> None:
        scripts = entry_points(group="console_scripts")
        for script in scripts:
            if script.name.startswith("mergekit-"):
                assert f"`{script.name}`" in PAGE, script.name
