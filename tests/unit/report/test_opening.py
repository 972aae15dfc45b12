"""What the report opens on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_compare_page import NAME, RECIPIENT, cell, compared
from test_report_summary import LOADED

from helpers.built_model import VERIFIED
from helpers.large_models import large_plan, llama_70b
from shardmerge.base.errors import UserError
from shardmerge.plan.paths import Paths
from shardmerge.plan.plan import Adapter, Plan
from shardmerge.report.opening import opening

PATHS = Paths("results")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return large_plan(tmp_path, llama_70b(12), files=3)


def put(path: str, data: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(data))


def test_says_what_is_not_there_yet(plan: Plan) -> None:
    plan = replace(plan, adapters={"a": Adapter("a", "d", (), ())})
    told = opening(plan, PATHS)
    assert told[NAME] == ["Not verified yet.", "Not loaded by transformers yet."]
    assert told["a"] == ["A LoRA adapter that is not finished yet."]
    put(PATHS.adapter_file("a", "SHA256SUMS"), "")
    assert opening(plan, PATHS)["a"] == ["A LoRA adapter, checked."]


def test_says_whether_it_is_right_and_how_good(plan: Plan) -> None:
    put(PATHS.build(NAME, "verify.json"), VERIFIED | {"build": plan.builds[NAME].digest})
    put(PATHS.build(NAME, "loaded.json"), LOADED)
    cells = [cell(NAME, "a_/acc"), cell(RECIPIENT, "a_/acc")]
    data = {"models": [NAME, RECIPIENT], "cells": cells, "footnotes": []}
    put(PATHS.measurement("table.json"), data | {"comparisons": [compared(NAME, "a_/acc")]})
    verified, loaded, better = opening(plan, PATHS)[NAME]
    assert verified.startswith("Verified: ")
    assert loaded == "Loaded by transformers, and generates."
    assert better == f"Better than {RECIPIENT} on a\\_/acc."


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loaded": "architecture"}, "Too large to be loaded here"),
        ({"finite": False}, "infinite or NaN"),
        ({"generated": []}, "Loaded by transformers."),
    ],
)
def test_says_what_is_wrong(plan: Plan, changes: dict[str, Any], told: str) -> None:
    put(PATHS.build(NAME, "loaded.json"), LOADED | changes)
    assert told in opening(plan, PATHS)[NAME][1]
    put(PATHS.build(NAME, "loaded.json"), {"loaded": 1})
    with pytest.raises(UserError, match="is not what a job of the workflow writes"):
        opening(plan, PATHS)
