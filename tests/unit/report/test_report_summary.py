"""The page that a model's report opens on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.built_model import VERIFIED
from helpers.large_models import large_plan, llama_70b
from shardmerge.base.errors import UserError
from shardmerge.export.record import ExportErrors, ExportRecord
from shardmerge.package.card_coefficients import describe_coefficients
from shardmerge.plan.description import load_description
from shardmerge.plan.plan import Plan
from shardmerge.recipe.naming import folder_names
from shardmerge.report.export_errors import exports_in_summary
from shardmerge.report.summary_facts import Findings, read_findings
from shardmerge.report.summary_page import summary_page

NAME = "miquplus-midnight-70b"
HOSTILE = "<script>alert(1)</script>&\"'"
LOADED = {
    "passed": True,
    "loaded": "weights",
    "architecture": "LlamaForCausalLM",
    "parameters": 1234,
    "unused": [],
    "tokenizer": 32000,
    "generated": [1, 2, 3, 4],
    "finite": True,
}


class _Parsed(HTMLParser):
    """A page's tags, the texts of its paragraphs and the cells of its rows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inside = ""
        self.paragraphs: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.tags.append(tag)
        self.inside = tag
        if tag == "p":
            self.paragraphs.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: Any) -> None:
        self.inside = ""

    def handle_data(self, data: Any) -> None:
        if self.inside == "p":
            self.paragraphs[-1] += data.strip()
        elif self.inside in ("td", "th"):
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return large_plan(tmp_path, llama_70b(12), files=3)


def scores(plan: Any, *cells: Any, footnotes: Any = ()) -> dict[Any, Any]:
    """Return a benchmark table: (model, label, value, stderr, settings) of each cell."""
    rows = [
        {
            "model": model,
            "label": label,
            "headline": True,
            "higher_is_better": True,
            "value": value,
            "stderr": error,
            "low": value - 2 * error if error else None,
            "high": value + 2 * error if error else None,
            "settings": settings,
            "notes": [1] if footnotes else [],
        }
        for model, label, value, error, settings in cells
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    return {"models": models, "cells": rows, "footnotes": list(footnotes)}


def difference(model: str, reference: str, **other: Any) -> dict[str, Any]:
    """Return a comparison as a table has it."""
    row = {"model": model, "reference": reference, "label": "t/acc", "headline": True}
    row |= {"higher_is_better": True, "test": "mcnemar", "difference": 0.1}
    row |= {"low": 0.05, "high": 0.15, "p": 0.001, "adjusted": 0.003, "questions": 200}
    return row | {"up": 30, "down": 10, "verdict": "unclear", "notes": []} | other


def write(
    folder: Any, plan: Any, verified: Any = None, loaded: Any = None, table: Any = None
) -> Findings:
    """Return what is read of files that hold these data; None is a file that is not there."""
    paths = []
    for name, data in (("verify", verified), ("loaded", loaded), ("table", table)):
        path = folder / f"{name}.json"
        paths.append(path)
        if data is not None:
            path.write_text(json.dumps(data))
    return read_findings(plan.builds[NAME].digest, *paths)


def parent(plan: Any, which: int) -> str:
    """Return what one of the sources is called in the table."""
    return list(folder_names(plan.sources, plan.builds).values())[which]


class TestVerdict:
    def test_whole_model(self, plan: Plan, tmp_path: Path) -> None:
        verified = VERIFIED | {"build": plan.builds[NAME].digest}
        page = _Parsed(summary_page(plan, NAME, write(tmp_path, plan, verified, LOADED), "r/x"))
        told = " ".join(page.paragraphs)
        assert "Verified: 183 tensors in 3 shards are as planned" in told
        assert "100 tensors compared bit by bit" in told and "steps of the engine" not in told
        assert "2 by a sample" in told
        assert "Loaded by transformers: LlamaForCausalLM, 1,234 parameters" in told
        assert "Generated 4 tokens, all finite" in told
        assert ["what was verified", "r/x/verify.json"] in page.rows

    def test_what_it_says_is_shown(self, plan: Plan, tmp_path: Path) -> None:
        loaded = LOADED | {"prompt": "Once", "text": " upon a <b>"}
        page = _Parsed(summary_page(plan, NAME, write(tmp_path, plan, loaded=loaded), "r/x"))
        assert any("After “Once” it goes on: “ upon a <b>”" in told for told in page.paragraphs)

    def test_exports_of_this_build_are_listed(self, plan: Plan, tmp_path: Path) -> None:
        errors = {"compared": 2, "rows": 256, "median": 0.0712, "largest": 0.1}
        errors["tensors"] = {"a": 0.01, "b": 0.1, "c": 0.0712, "d<": 0.08}
        record = {"form": "gguf", "variant": "q4_k_m", "build": plan.builds[NAME].digest}
        record |= {"files": {"m.gguf": {"sha256": "a" * 64, "size": 5_000_000}}, "errors": errors}
        record |= {"tensors": {}, "bits_per_weight": 4.5, "metadata": {}}
        paths = [tmp_path / "own.json", tmp_path / "other.json", tmp_path / "missing.json"]
        paths[0].write_text(json.dumps(record))
        paths[1].write_text(json.dumps(record | {"variant": "f16", "build": "b" * 64}))
        found = read_findings(plan.builds[NAME].digest, None, None, None, None, paths)
        rows = _Parsed(summary_page(plan, NAME, found, "r/x")).rows
        assert ["GGUF", "q4_k_m", "5.00 MB", "4.50", "0.071", "0.1"] in rows
        assert ["GGUF", "q4_k_m", "b 0.1, d< 0.08, c 0.071"] in rows
        assert not any("f16" in row for row in rows)

    def test_errors_of_exports_are_told_for_each_module(self) -> None:
        layers = [f"model.layers.{layer}." for layer in range(3)]
        tensors = {f"{p}mlp.up_proj.weight": 0.1 * (i + 1) for i, p in enumerate(layers)}
        tensors |= {f"{layers[0]}moe.experts.{n}.w1.weight": 0.05 for n in range(4)}
        errors = ExportErrors(compared=7, rows=None, median=0.05, largest=0.3, tensors=tensors)
        record = ExportRecord(form="w4a16", variant="w4a16", build="b" * 64, files={}, tensors={},
                              bits_per_weight=4.5, metadata={}, errors=errors)  # fmt: skip
        rows = _Parsed("".join(exports_in_summary([record]))).rows
        assert ["mlp.up_proj", "3", "0.2 (0.3)"] in rows
        assert ["moe.experts.*.w1", "4", "0.05 (0.05)"] in rows

    def test_what_is_missing_is_said(self, plan: Plan, tmp_path: Path) -> None:
        page = _Parsed(summary_page(plan, NAME, write(tmp_path, plan), "r/x"))
        told = " ".join(page.paragraphs)
        assert "Not verified yet" in told and "Not loaded by transformers yet" in told
        assert "Nothing is measured" in told
        assert summary_page(plan, NAME, Findings(), "r/x") == summary_page(
            plan, NAME, read_findings("x", None, "", None), "r/x"
        )

    def test_what_was_verified_of_another_build_does_not_count(
        self, plan: Plan, tmp_path: Path
    ) -> None:
        assert write(tmp_path, plan, VERIFIED | {"build": "0" * 64}).verified is None

    def test_large_tensors_are_told_apart(self, plan: Plan, tmp_path: Path) -> None:
        verified = VERIFIED | {"build": plan.builds[NAME].digest, "verified_by_probes": 3}
        page = _Parsed(summary_page(plan, NAME, write(tmp_path, plan, verified), "r/x"))
        assert "3 tensors verified by products with random vectors" in " ".join(page.paragraphs)

    def test_half_a_verdict_is_no_whole_one(self, plan: Plan, tmp_path: Path) -> None:
        verified = VERIFIED | {"build": plan.builds[NAME].digest, "not_sampled": ["a", "b"]}
        loaded = LOADED | {"loaded": "architecture", "tokenizer": "none", "unused": ["c"]}
        del loaded["generated"]
        page = _Parsed(summary_page(plan, NAME, write(tmp_path, plan, verified, loaded), "r/x"))
        told = " ".join(page.paragraphs)
        assert "2 tensors not recomputed." in told
        assert "weights were not loaded" in told and "Generated" not in told
        assert "Tokenizer: none." in told and "does not use: c" in told

    @pytest.mark.parametrize("text", ['{"shards": -1}', "[]", "{", '{"cells": 3}'])
    def test_damaged_file_is_one_sentence(self, plan: Plan, tmp_path: Path, text: str) -> None:
        for name in ("verify", "loaded", "table"):
            path = tmp_path / f"{name}.json"
            path.write_text(text)
            with pytest.raises(UserError, match=name):
                write(tmp_path, plan)
            path.unlink()


class TestBenchmarks:
    def page(self, plan: Any, folder: Any, table: Any) -> _Parsed:
        return _Parsed(summary_page(plan, NAME, write(folder, plan, table=table), "r/x"))

    def test_intervals_and_differences_to_parents(self, plan: Plan, tmp_path: Path) -> None:
        first, second = parent(plan, 0), parent(plan, 1)
        table = scores(
            plan,
            (NAME, "t/acc", 0.6, 0.01, {}),
            (first, "t/acc", 0.5, 0.01, {}),
            (second, "t/acc", 0.59, 0.01, {}),
            ("other", "t/acc", 0.1, 0.01, {}),
        )
        table["comparisons"] = [
            difference(NAME, first, verdict="better"),
            difference(NAME, second, adjusted=0.5, notes=["of the 5 questions that both answered"]),
            difference(NAME, "other", verdict="better"),
            difference("other", first, verdict="worse"),
        ]
        table["notes"] = ["It is so."]
        page = self.page(plan, tmp_path, table)
        shown = [f"{v:.3f} [{v - 0.02:.3f}, {v + 0.02:.3f}]" for v in (0.6, 0.5, 0.59, 0.1)]
        assert ["t/acc ↑", *shown] in page.rows
        tested = ["+0.100 [+0.050, +0.150]", "30 won, 10 lost of 200"]
        assert ["t/acc ↑", NAME, first, *tested, "0.003", "better"] in page.rows
        told = "not clear; of the 5 questions that both answered"
        assert ["t/acc ↑", NAME, second, *tested, "0.500", told] in page.rows
        assert sum(len(row) == 7 for row in page.rows) == 3  # with the header
        assert "It is so." in page.paragraphs
        assert any("95 % interval" in text for text in page.paragraphs)

    def test_what_cannot_be_compared_says_why(self, plan: Plan, tmp_path: Path) -> None:
        first = parent(plan, 0)
        table = scores(
            plan,
            (NAME, "u/ppl", float("inf"), None, {}),
            (first, "u/ppl", 3.0, float("nan"), {}),
            footnotes=[HOSTILE],
        )
        numbers = dict.fromkeys(("test", "difference", "low", "high", "p", "adjusted"))
        table["comparisons"] = [
            difference(NAME, first, **numbers, verdict="untested", notes=[HOSTILE])
        ]
        page = self.page(plan, tmp_path, table)
        assert ["t/acc ↑", NAME, first, "-", "-", "-", HOSTILE] in page.rows
        assert ["u/ppl ↑", "inf [1]", "3.000 [1]"] in page.rows
        assert f"[1] {HOSTILE}" in page.paragraphs

    def test_parents_or_the_model_may_not_be_measured(self, plan: Plan, tmp_path: Path) -> None:
        alone = self.page(plan, tmp_path, scores(plan, (NAME, "t/acc", 0.6, None, {})))
        assert any("None of the models" in text for text in alone.paragraphs)
        others = self.page(plan, tmp_path, scores(plan, (parent(plan, 0), "t/acc", 0.6, 0.1, {})))
        assert any("itself was not measured" in text for text in others.paragraphs)


class TestText:
    def test_of_strangers_is_escaped(self, plan: Plan, tmp_path: Path) -> None:
        verified = VERIFIED | {"build": plan.builds[NAME].digest, "not_sampled": [HOSTILE]}
        loaded = LOADED | dict.fromkeys(("architecture", "tokenizer", "prompt", "text"), HOSTILE)
        loaded |= {"unused": [HOSTILE]}
        table = scores(plan, (NAME, HOSTILE, 0.5, 0.1, {}), (HOSTILE, HOSTILE, 0.5, 0.1, {}))
        found = write(tmp_path, plan, verified, loaded, table)
        warned = replace(plan, warnings=(HOSTILE,))
        text = summary_page(warned, NAME, found, HOSTILE)
        page = _Parsed(text)
        assert "script" not in page.tags and "<script" not in text
        assert HOSTILE in page.paragraphs
        assert ["model", f"{HOSTILE}/model"] in page.rows
        assert sum(HOSTILE in cell for row in page.rows for cell in row) > 5

    def test_needs_nothing_from_elsewhere_and_suits_dark_windows(self, plan: Plan) -> None:
        text = summary_page(plan, NAME, Findings(), "r/x")
        assert not {"script", "link", "img", "iframe"} & set(_Parsed(text).tags)
        assert not re.search(r"url\(|@import|src=", text)
        assert "prefers-color-scheme: dark" in text
        assert text == summary_page(plan, NAME, Findings(), "r/x")

    def test_formula_is_the_cards(self, plan: Plan) -> None:
        page = _Parsed(summary_page(plan, NAME, Findings(), "r/x"))
        assert ["", "everything else", "miqu-1-70b-sf"] in page.rows
        card = describe_coefficients(load_description(plan.builds[NAME].digest))
        at = page.rows.index(["layers", "modules", "value"])
        formulas = [row[2] for row in page.rows[at + 1 :] if len(row) == 3]
        assert len(formulas) > 1 and any(" * (" in formula for formula in formulas)
        assert all(f"`{formula}`" in card for formula in formulas)
