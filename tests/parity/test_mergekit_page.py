"""docs/mergekit.md names all that the installed mergekit takes."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

from shardmerge.recipe.document import DOCUMENT_KEYS

config = pytest.importorskip("mergekit.config")
options = pytest.importorskip("mergekit.options")
PAGE = (Path(__file__).parents[2] / "docs" / "mergekit.md").read_text(encoding="utf-8")


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

    def test_commands(self) -> None:
        scripts = entry_points(group="console_scripts")
        for script in scripts:
            if script.name.startswith("mergekit-"):
                assert f"`{script.name}`" in PAGE, script.name
