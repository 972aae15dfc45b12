"""What is done for a tensor is found once, and all of the engine goes by it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import engine_cases as cases
from helpers.engine_cases import Models, assert_same, normal
from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.numerics import FLOAT32
from shardmerge.engine import tasks
from shardmerge.engine.chunks import EdgeBuffer
from shardmerge.engine.layout import Chunk
from shardmerge.engine.tasks import (
    TensorTask,
    make_task,
    make_tasks,
    needs_torch,
    one_task_of_each,
    uses_card,
)

SHAPE = (6, 4)
A, B, Q = (ex.Source(model, "f", "w", "F16", SHAPE) for model in "abq")
DELTA, OTHER = ex.Delta(A, B, "F16"), ex.Delta(Q, B, "F16")
SUM = ex.Linear(((1.0, Q), (0.5, DELTA)))
ELEMENTWISE = ex.Choice((A, B), "0*3,1*3")


def slerp(*inputs: ex.Expression) -> ex.Call:
    return ex.Call("slerp", inputs, 0, (("t", 0.5),), output_shape=SHAPE)


def held(*inputs: ex.Expression) -> ex.Call:
    """Return a call that is made from whole tensors."""
    return ex.Call("dora", inputs, None, (("transposed", False),), output_shape=SHAPE)


def task_of(expression: ex.Expression, code: str = "F16", stored: tuple = ()) -> TensorTask:
    return make_task(OutputTensor("w", code, SHAPE, expression), stored, FLOAT32)


class TestOneOfEach:
    @staticmethod
    def spec() -> ShardSpec:
        tensors = []
        for name in ("v", "w"):
            a, b, q = (ex.Source(model, "f", name, "F16", SHAPE) for model in "abq")
            sums = ex.Linear(((1.0, q), (0.5, ex.Delta(a, b, "F16"))))
            for number, (one, code) in enumerate([(a, "F16"), (a, "F32"), (sums, "F16")]):
                tensors.append(OutputTensor(f"{name}{number}", code, SHAPE, one))
        return ShardSpec(tuple(tensors), {(model, "f"): model for model in "abq"}, FLOAT32)

    def test_others_differ_in_names_alone(self) -> None:
        found = one_task_of_each(self.spec())
        assert [task.tensor.name for task in found] == ["v0", "v1", "v2"]
        assert found == make_tasks(self.spec())[:3]

    def test_names_tell_what_is_stored(self) -> None:
        stored = (ex.Delta(*(ex.Source(m, "f", "w", "F16", SHAPE) for m in "ab"), "F16"),)
        found = one_task_of_each(self.spec(), stored)
        assert [task.tensor.name for task in found] == ["v0", "v1", "v2", "w2"]
        every = {task.tensor.name: task for task in make_tasks(self.spec(), stored)}
        assert all(every[task.tensor.name] == task for task in found)


class TestTask:
    @pytest.mark.parametrize(
        ("expression", "code", "kind"),
        [
            (A, "F16", "copy"),
            (ex.Linear(((1.0, ex.Cast(A, "F16")),)), "F16", "copy"),
            (A, "BF16", "native"),
            (SUM, "F16", "native"),
            (ELEMENTWISE, "F16", "blocks"),
            (SUM, "F64", "blocks"),
            (slerp(A, B), "F16", "native"),
            (slerp(A, B), "F64", "blocks"),
            (ex.Linear(((0.5, A), (0.5, slerp(SUM, slerp(A, B))))), "F16", "native"),
            (slerp(A, held(A, B)), "F16", "whole"),
            (ex.Linear(((0.5, A), (0.5, held(A, B)))), "F16", "whole"),
        ],
    )
    def test_kinds(self, expression: ex.Expression, code: str, kind: str) -> None:
        task = task_of(expression, code)
        assert task.kind == kind
        assert (task.steps is not None) == (kind == "native")
        assert needs_torch([task]) == (kind in ("blocks", "whole"))
        assert uses_card([task], "cuda:1") == needs_torch([task])
        assert not uses_card([task], "cpu")

    def test_a_stored_task_vector_is_copied(self) -> None:
        assert task_of(DELTA).kind == "native"
        task = task_of(DELTA, stored=(DELTA,))
        assert (task.kind, task.reads) == ("copy", (DELTA,))

    def test_numbers_of_task_vectors(self) -> None:
        """They are the record's, so they count through what is held whole."""
        task = task_of(ex.Linear(((1.0, held(OTHER, A)), (0.5, DELTA), (0.1, OTHER))))
        assert task.numbers == {OTHER: 0, DELTA: 1}
        assert task.direct == {OTHER: 0, DELTA: 1}
        task = task_of(ex.Linear(((1.0, held(OTHER, A)), (0.5, DELTA))))
        assert (task.direct, task.indirect) == ({DELTA: 1}, {OTHER: 0})

    def test_is_made_once_for_a_tensor(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = {"w": normal((40, 30), 1, "F16"), "v": normal((40, 30), 2, "F16")}
        models = Models(tmp_path, {"a": values, "b": values})
        rows = {
            name: (
                "F16",
                ex.Linear(((0.5, models.source("a", name)), (0.5, models.source("b", name)))),
            )
            for name in values
        }
        seen: Counter[str] = Counter()
        for name in ("simplify", "block_leaves", "file_leaves", "low_ranks", "steps_for"):
            function = getattr(tasks, name)

            def counted(*args: object, name: str = name, function: Any = function) -> object:
                seen[name] += 1
                return function(*args)

            monkeypatch.setattr(tasks, name, counted)
        with cases.tuned(**cases.SMALL):
            models.build(models.spec(rows), threads=2)
        assert set(seen.values()) == {2}
        assert_same(models.load()["w"], values["w"])


class TestEdgeBuffer:
    """Elements of two bytes; the window holds bytes 1 to 8 of a tensor, or whole elements."""

    @pytest.mark.parametrize("kind", ["memoryview", "tensor"])
    @pytest.mark.parametrize(
        ("skip", "begin", "end", "expected"),
        [
            (0, 2, 8, [9, 9, 0, 1, 2, 3, 4, 5, 9, 9]),  # in its place
            (1, 0, 5, [1, 2, 3, 4, 5, 9, 9, 9, 9, 9]),  # its first byte lies before
            (0, 6, 10, [9, 9, 9, 9, 9, 9, 0, 1, 2, 3]),  # its last bytes lie behind
            (0, 3, 9, [9, 9, 9, 0, 1, 2, 3, 4, 5, 9]),  # not on a multiple of an element
        ],
    )
    def test_brings_the_bytes_of_the_window(
        self, kind: str, skip: int, begin: int, end: int, expected: list[int]
    ) -> None:
        plain = kind == "memoryview"
        output = memoryview(bytearray([9] * 10)) if plain else torch.full((10,), 9).byte()
        edge = EdgeBuffer(
            (lambda n: memoryview(bytearray(n)))
            if plain
            else (lambda n: torch.empty(n, dtype=torch.uint8))
        )
        chunk = Chunk(0, 0, 3, 2, skip, begin, end, ())
        with edge.elements(chunk, output) as target:
            assert len(target) == 6
            target[:] = bytes(range(6)) if plain else torch.arange(6).byte()
        assert list(output) == expected
