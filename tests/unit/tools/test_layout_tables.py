"""Tables of layouts: those of the installed transformers, in the data and on the page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from shardmerge.compose.architecture.text_part import TEXT_MODELS_FILE
from tools.layouts.page import PAGE, with_table
from tools.layouts.tables import committed, drift, layouts_text
from tools.layouts.text_models import text_models_text


@pytest.fixture(scope="module")
def installed() -> str:
    return layouts_text()


def test_transformers_has_not_changed(installed: str) -> None:
    changed = drift(committed(), installed)
    assert not changed, (
        f"other layouts in this transformers, run `python -m tools.layouts`: {changed}"
    )


@pytest.mark.slow
def test_classes_of_text_decoders_have_not_changed() -> None:
    found, have = json.loads(text_models_text()), json.loads(TEXT_MODELS_FILE.read_text())
    parts = [one.pop("parts") for one in (found, have)]
    assert found == have, "run `python -m tools.layouts`"
    assert parts[0].items() <= parts[1].items()  # some need libraries to be asked


def test_it_is_the_same_again(installed: str) -> None:
    assert layouts_text() == installed


def test_the_page_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, committed()) == page


def test_every_type_is_on_the_page() -> None:
    words = set(re.findall(r"[\w.-]+", PAGE.read_text(encoding="utf-8")))
    assert set(json.loads(committed())["types"]) <= words


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["types"].pop("mixtral"),
        lambda data: data["tables"][data["types"]["mixtral"]][0]["to"].append("x"),
        lambda data: data["tables"].update(own=[]) or data["types"].update(own="own"),
    ],
    ids=["one less", "another", "one more"],
)
def test_changes_are_told(change: Any) -> None:
    data = json.loads(committed())
    change(data)
    assert {"mixtral", "own"} & set(drift(committed(), json.dumps(data)))


def test_what_is_written_is_all_that_is_used() -> None:
    """Targets name no group but the first, and every pattern is one of Python's."""
    for rows in json.loads(committed())["tables"].values():
        for row in rows:
            assert all(map(re.compile, row["from"]))
            if "unsupported" not in row:
                assert not any(re.search(r"\\(?!1)", target) for target in row["to"])
                assert len(row["to"]) == 1 or "steps" in row
