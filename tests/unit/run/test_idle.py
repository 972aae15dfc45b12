"""Targets that make nothing say so, and what to write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardmerge.plan.plan import NO_PLAN, Adapter
from shardmerge.recipe.settings import load_settings
from shardmerge.run.idle import idle
from shardmerge.run.targets import Targets


def targets(*adapters: str, **settings: Any) -> Targets:
    plan = replace(NO_PLAN, adapters={name: Adapter(name, "d", (), ()) for name in adapters})
    return Targets(load_settings({"recipes": ["r"]} | settings), plan)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("target", "hint"), [("benchmarks", "tasks:"), ("exports", "gguf:"), ("sweep", "`sweep`")]
)
def test_what_is_not_configured(target: str, hint: str) -> None:
    (told,) = idle({target}, targets(), sweeps=False)
    assert told.startswith("nothing is ") and hint in told


def test_what_is_configured_is_not_told() -> None:
    found = targets(benchmark={"tasks": ["t"]})
    assert idle({"benchmarks", "sweep", "report"}, found, sweeps=True) == []
    assert idle({"models", "all"}, targets("a"), sweeps=False) == []


@pytest.mark.parametrize("target", ["benchmarks", "exports"])
def test_adapters_are_told_with_what_can_be_done(target: str) -> None:
    *_, told = idle({target}, targets("a", "b"), sweeps=False)
    assert told.startswith("adapter a, and 1 other: not ")
    assert "base+folder" in told or "name it, or `adapters`," in told


@pytest.mark.parametrize("target", ["publish", "preview"])
def test_nothing_to_publish(target: str) -> None:
    (told,) = idle({target}, targets(), sweeps=False)
    assert target in told and "no adapter is built" in told
    assert idle({target}, targets("a"), sweeps=False) == []
