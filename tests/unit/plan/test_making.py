"""Jobs that make sources: where they run, and whose unfinished work they go on with."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

import make_source
from shardmerge.plan.making import MADE_KINDS

REPO = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", MADE_KINDS.values(), ids=MADE_KINDS)
def test_the_environment_has_what_a_kind_needs(kind: Any) -> None:
    packages = (REPO / "envs" / f"{kind.environment}.yaml").read_text()
    assert "- torch==" in packages and "- safetensors==" in packages
    rule = (REPO / "rules" / "made.smk").read_text()
    assert f'"../envs/{kind.environment}.yaml"' in rule
    needed = {"transplants": "tokenizers"}.get(kind.folder, "torch")
    assert f"- {needed}==" in packages


@pytest.mark.parametrize("change", [{"job": "b"}, {"threads": 2}, {"device": "cuda:9"}])
def test_another_job_begins_anew(change: dict[str, Any]) -> None:
    args = {"job": "a", "threads": 1, "device": "cpu"}
    facts = make_source._facts(Namespace(**args))
    assert facts == make_source._facts(Namespace(**args))
    assert facts != make_source._facts(Namespace(**(args | change)))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_other_libraries_begin_anew(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = Namespace(job="a", threads=1, device="cpu")
    before = make_source._facts(args)
    versions = before["tools"] | {package: "0.0"}
    monkeypatch.setattr(make_source, "tool_versions", lambda: versions)
    assert make_source._facts(args) != before
