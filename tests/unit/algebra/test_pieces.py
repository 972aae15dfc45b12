"""Arrangements: the same as numpy makes of the same operations, whatever is put into what."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable

import numpy as np
import pytest

from shardmerge.algebra import expression as ex
from shardmerge.algebra import pieces
from shardmerge.algebra.arrange import MixedPartsError, arrange
from shardmerge.algebra.json import from_json, to_json
from shardmerge.algebra.leaves import bytes_read
from shardmerge.algebra.pieces import Arrangement
from shardmerge.algebra.spec import delta_name
from shardmerge.engine import arranging

EXPERTS, ROWS, COLUMNS = 3, 4, 5


class Numbers:
    """Source tensors of numbers that all differ."""

    def __init__(self) -> None:
        self.values: dict[ex.Source, np.ndarray] = {}

    def source(self, name: str, shape: tuple[int, ...], dtype: str = "F32") -> ex.Source:
        made = ex.Source("m", "f", name, dtype, shape)
        count = int(np.prod(shape))
        first = 1000 * len(self.values)
        self.values[made] = np.arange(first, first + count, dtype="<f4").reshape(shape)
        if dtype == "F16":
            self.values[made] = (self.values[made] % 512).astype("<f2")
        return made

    def read(self, operand: ex.Source, begin: int, target: np.ndarray) -> None:
        target[:] = self.values[operand].reshape(-1)[begin : begin + len(target)]

    def of(self, node: ex.Expression, step: Callable[[], int] = lambda: 7) -> np.ndarray:
        """Return an arranged tensor, read in ranges."""
        if isinstance(node, ex.Source):
            return self.values[node]
        target, held, first = np.full(ex.elements(node), -1, "<f4"), {}, 0
        while first < len(target):
            last = min(first + step(), len(target))
            arranging.fill_elements(node, self.read, held, first, target[first:last])
            first = last
        return target.reshape(node.shape)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arranging, "_BAND", 40)  # bytes: bands end within matrices


def experts() -> tuple[Numbers, dict[str, ex.Source], Arrangement]:
    """Return parts of experts one by one, and how they are fused."""
    numbers = Numbers()
    names = [f"{kind}{i}" for kind in "gu" for i in range(EXPERTS)]
    parts = {name: numbers.source(name, (ROWS, COLUMNS)) for name in names}
    halves = [
        pieces.stack([pieces.entire(f"{kind}{i}", (ROWS, COLUMNS)) for i in range(EXPERTS)])
        for kind in "gu"
    ]
    return numbers, parts, pieces.concatenate(halves, 1)


def fused(numbers: Numbers, parts: dict[str, ex.Source]) -> np.ndarray:
    halves = [np.stack([numbers.values[parts[f"{k}{i}"]] for i in range(EXPERTS)]) for k in "gu"]
    return np.concatenate(halves, 1)


class TestFusedAndApart:
    @pytest.mark.parametrize("step", [1, 3, 64, 1000])
    @pytest.mark.parametrize("turned", [False, True])
    def test_one_by_one_to_fused(self, step: int, turned: bool) -> None:
        numbers, parts, made = experts()
        wanted = fused(numbers, parts)
        if turned:
            made, wanted = pieces.transpose(made, 1, 2), wanted.transpose(0, 2, 1)
        node = arrange(made, parts)
        assert np.array_equal(numbers.of(node, lambda: step), wanted)
        assert from_json(json.loads(json.dumps(to_json(node)))) == node
        assert bytes_read(node) == wanted.nbytes

    @pytest.mark.parametrize("turned", [False, True])
    def test_fused_to_one_by_one(self, turned: bool) -> None:
        numbers, _, made = experts()
        made = pieces.transpose(made, 1, 2) if turned else made
        whole = numbers.source("whole", made.shape)
        values = numbers.values[whole].transpose(0, 2, 1) if turned else numbers.values[whole]
        for name, boxes in pieces.invert(made, "whole").items():
            one = Arrangement((ROWS, COLUMNS), tuple(boxes))
            assert one.is_full
            node = arrange(one, {"whole": whole})
            first = ROWS * (name[0] == "u")
            assert np.array_equal(numbers.of(node), values[int(name[1:]), first : first + ROWS])
            assert bytes_read(node) == 4 * ROWS * COLUMNS

    @pytest.mark.parametrize("turned", [False, True])
    def test_there_and_back(self, turned: bool) -> None:
        numbers, parts, made = experts()
        made = pieces.transpose(made, 1, 2) if turned else made
        whole = numbers.source("whole", made.shape)
        apart = {
            name: arrange(Arrangement((ROWS, COLUMNS), tuple(boxes)), {"whole": whole})
            for name, boxes in pieces.invert(made, "whole").items()
        }
        assert arrange(made, apart) == whole
        node = arrange(made, parts)
        for name, boxes in pieces.invert(made, "node").items():
            assert (
                arrange(Arrangement((ROWS, COLUMNS), tuple(boxes)), {"node": node}) == parts[name]
            )

    def test_widths_that_differ_are_widened(self) -> None:
        numbers = Numbers()
        parts = {0: numbers.source("a", (2, 3)), 1: numbers.source("b", (4, 3), "F16")}
        made = pieces.concatenate([pieces.entire(i, one.shape) for i, one in parts.items()])
        node = arrange(made, parts)
        assert node.dtype == "F32"
        assert np.array_equal(
            numbers.of(node), np.concatenate([numbers.values[p] for p in parts.values()])
        )

    def test_shapes_that_do_not_go_together(self) -> None:
        one, other = pieces.entire("a", (2, 3)), pieces.entire("b", (2, 4))
        for wrong in (
            lambda: pieces.stack([one, other]),
            lambda: pieces.concatenate([one, other], 0),
            lambda: pieces.concatenate([one], 2),
            lambda: pieces.chunk(one, 2, 1),
            lambda: pieces.transpose(one, 1, 2),
        ):
            with pytest.raises(ValueError, match="do not go together"):
                wrong()


def test_any_chain_of_operations() -> None:
    """Stacks, slices and transpositions of each other, compared with numpy's at every step."""
    chance = random.Random(1)
    for _ in range(150):
        numbers = Numbers()
        count, shape = chance.randint(1, 3), (chance.randint(1, 4) * 2, chance.randint(1, 4) * 2)
        parts = {i: numbers.source(str(i), shape) for i in range(count)}
        made = pieces.stack([pieces.entire(i, shape) for i in parts])
        value = np.stack([numbers.values[parts[i]] for i in parts])
        for _ in range(chance.randint(0, 4)):
            kind = chance.choice(("turn", "cut", "join", "swap"))
            axis = chance.randrange(3)
            if kind == "turn":
                made, value = pieces.transpose(made, 1, 2), value.transpose(0, 2, 1)
            elif kind == "swap":
                made, value = pieces.transpose(made, 0, axis), value.swapaxes(0, axis)
            elif kind == "cut" and value.shape[axis] % 2 == 0:
                number = chance.randrange(2)
                made = pieces.chunk(made, 2, axis)[number]
                value = np.split(value, 2, axis)[number]
            elif kind == "join":
                made = pieces.concatenate([made, made], axis)
                value = np.concatenate([value, value], axis)
        node = arrange(made, parts)
        assert np.array_equal(numbers.of(node, lambda: chance.randint(1, 30)), value)


class TestSums:
    def test_of_one_form_stay_sums(self) -> None:
        numbers, parts, made = experts()
        other = {name: numbers.source(f"o{name}", (ROWS, COLUMNS)) for name in parts}
        sums = {
            name: ex.Linear(((0.5, parts[name]), (2.0, ex.Delta(other[name], parts[name], "BF16"))))
            for name in parts
        }
        node = arrange(made, sums)
        plain, apart = arrange(made, parts), arrange(made, other)
        assert node == ex.Linear(((0.5, plain), (2.0, ex.Delta(apart, plain, "BF16"))))

    @pytest.mark.parametrize("part", [
        lambda s: ex.Linear(((0.5, s),)),
        lambda s: ex.Cast(s, "BF16"),
        lambda s: ex.Zero(s.shape),
    ])  # fmt: skip
    def test_of_several_forms_are_refused(self, part: Callable[[ex.Source], ex.Expression]) -> None:
        _, parts, made = experts()
        mixed = {name: part(one) if name == "g0" else one for name, one in parts.items()}
        with pytest.raises(MixedPartsError):
            arrange(made, mixed)


def test_names_of_task_vectors_tell_layouts() -> None:
    """What is stored is found by its name, so other arrangements have others."""
    numbers, parts, made = experts()
    files = {("m", "f"): "sha256:1"}
    base = numbers.source("base", made.shape)
    other = dict(zip(parts, [*list(parts.values())[1:], parts["g0"]], strict=True))
    nodes = [arrange(made, parts), arrange(made, other), base]
    names = [delta_name(ex.Delta(one, base, "F32"), files) for one in nodes]
    assert all(a != b for a, b in itertools.combinations(names, 2))
