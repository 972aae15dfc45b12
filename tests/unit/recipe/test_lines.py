"""LiNeS is a gradient: the recipe of its page has the coefficients of the paper's formula."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardmerge.report.explain import explain

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "lines.md"
MODELS = ("owner/first-fine-tune", "owner/second-fine-tune")


def coefficients(folder: Path, layers: int, text: str) -> dict[tuple[str, int | None], list[float]]:
    """Return the models' coefficients in a recipe, for each module and layer."""
    path = folder / "lines.yaml"
    path.write_text(text)
    (found,) = explain(str(path), {}, layers=layers).models.values()
    return {
        place: [next(s.mean for t, s in terms.items() if name in t) for name in MODELS]
        for place, terms in found.cells.items()
    }


def blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("layers", [2, 7, 32])
def test_the_pages_recipe_has_the_formulas_coefficients(tmp_path: Path, layers: int) -> None:
    recipe, _ = blocks()
    found = coefficients(tmp_path, layers, recipe)
    inside = {place: values for place, values in found.items() if place[1] is not None}
    assert {layer for _, layer in inside} == set(range(layers))
    for (_, layer), values in inside.items():
        assert values == pytest.approx([0.2 + 0.5 * layer / (layers - 1)] * 2)


def test_what_is_in_no_layer(tmp_path: Path) -> None:
    recipe, part = blocks()
    filtered = recipe[: recipe.index("parameters:\n  lambda")] + part
    for text, last in ((recipe, 0.2), (filtered, 0.7)):
        found = coefficients(tmp_path, 4, text)
        assert {row: values for (row, layer), values in found.items() if layer is None} == {
            "embed_tokens": pytest.approx([0.2] * 2),
            "norm": pytest.approx([last] * 2),
            "lm_head": pytest.approx([last] * 2),
        }
        assert found["up_proj", 3] == pytest.approx([0.7] * 2)
