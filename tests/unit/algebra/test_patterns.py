"""What is found once for all expressions of a pattern, and texts that differ in names alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from shardmerge.algebra import expression as ex
from shardmerge.algebra.coefficients import blend_of, terms_of
from shardmerge.algebra.json import source_to_json, to_json
from shardmerge.algebra.patterns import alike, json_text, pattern
from shardmerge.algebra.pieces import Patch
from shardmerge.base.digest import canonical_json, quoted

SHAPE = (4, 2)
#: Names that would break a text which is put together carelessly.
NAMES = ("plain", 'quo"te', "%s %% @0t", '"@0t"', "@@0f", "ünï", "back\\slash")


def source(model: str, tensor: str, dtype: str = "F16") -> ex.Source:
    return ex.Source(model, f"{tensor}.safetensors", tensor, dtype, SHAPE)


def decoded(model: str, tensor: str) -> ex.Decoded:
    parts = (("codes", source(model, tensor)), ("scales", source(model, f"{tensor}_scale")))
    return ex.Decoded("fp8-block", parts, (("block", (128, 128)),), SHAPE)


def every_kind(name: str) -> list[ex.Expression]:
    """Return expressions of all kinds of node, of tensors with names that begin so."""
    a, b, c = source("a", name), source("b", name), decoded("c", name)
    delta = ex.Delta(a, b, "F16")
    whole = Patch(c, (0, 0), SHAPE, (0, 1), (0, 0))
    call = ex.Call("slerp", (a, b), 0, (("t", 0.25),), (("w", (None, 1)),), name, ("a", "b"), SHAPE)
    return [
        *(a, c, delta, call),
        ex.Linear(((1.0, b), (0.5, delta), (-0.0, c))),
        ex.Arranged((whole,), SHAPE),
        ex.LowRank(a, source("b", f"{name}.a"), 2.0, False, "F32"),
        ex.Cast(ex.Linear(((0.5, call), (2.0, replace(call, tensor=f"{name}.x")))), "BF16"),
        ex.Rows(call, "0+4"),
        ex.Choice((a, b), "0*4"),
        ex.Mean(a),
        ex.Zero(SHAPE),
    ]


@pytest.mark.parametrize("number", range(len(every_kind("x"))))
def test_texts_are_those_of_json(number: int) -> None:
    for name in NAMES:
        one = every_kind(name)[number]
        files = {(s.model, s.file): quoted(s.file) for s in ex.sources(one)}
        assert json_text(one, source_to_json, files) == canonical_json(to_json(one))
    kinds = {pattern(every_kind(name)[number]) for name in NAMES}
    assert len(kinds) == 1


def _short(source: ex.Source, file: str, tensor: str) -> list[str]:
    return [file, tensor]


def test_files_may_be_told_in_another_way() -> None:
    one = ex.Delta(source("a", "x"), source("b", "x"), "F16")
    files = {(s.model, s.file): quoted(f"file of {s.model}") for s in ex.sources(one)}
    found = json.loads(json_text(one, _short, files))
    assert found["finetuned"] == ["file of a", "x"]
    assert found["base"] == ["file of b", "x"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (source("a", "x"), source("b", "x")),
        (source("a", "x"), source("a", "x", "F32")),
        (source("a", "x.lora_B.bias"), source("a", "x.weight")),
        (ex.Linear(((0.0, source("a", "x")),)), ex.Linear(((-0.0, source("a", "x")),))),
        (
            ex.Call("m", (source("a", "x"),), None, (("p", 1),)),
            ex.Call("m", (source("a", "x"),), None, (("p", True),)),
        ),
        (
            ex.Call("m", (source("a", "x"),), None, (("p", 1),)),
            ex.Call("m", (source("a", "x"),), None, (("p", 1.0),)),
        ),
        (
            ex.Linear(((1.0, source("a", "x")), (1.0, source("a", "x")))),
            ex.Linear(((1.0, source("a", "x")), (1.0, source("a", "y")))),
        ),
    ],
)
def test_what_is_written_or_counts_otherwise_has_another_pattern(
    one: ex.Expression, other: ex.Expression
) -> None:
    assert pattern(one) is not pattern(other)


def test_answers_are_those_of_each_expression() -> None:
    for one, other in zip(every_kind("x"), every_kind("y"), strict=True):
        for find in (terms_of, blend_of):
            assert alike(one, find) == find(one)
            assert alike(other, find) is alike(one, find)
            assert alike(other, find) == find(other)
