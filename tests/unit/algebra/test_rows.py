"""Tables of rows, and tensors that are made of other tensors' rows."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import kernel_cases
from helpers.engine_cases import (
    SMALL,
    Models,
    assert_same,
    call_of,
    normal,
    reference,
    rounded,
    tuned,
)
from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.algebra.json import from_json, to_json
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.check.shard import check_shard
from shardmerge.engine import make_tasks, workspace_bytes

ROWS = st.lists(st.one_of(st.just(rows.ZERO), st.integers(0, 9)), max_size=30)
MEMBERS = st.lists(st.sampled_from([(), (0,), (1,), (0, 1), (1, 2, 3)]), max_size=30)


class TestTables:
    @pytest.mark.parametrize(
        ("listed", "text"),
        [
            ([0, 1, 2], "0+3"),
            ([5, 6, 9, -1, -1, 3], "5+2,9,-2,3"),
            ([-1], "-1"),
            ([2, 2, 2], "2,2,2"),
            ([-1, 0, 1], "-1,0+2"),
            ([], ""),
        ],
    )
    def test_rows_as_text(self, listed: list[Any], text: str) -> None:
        assert rows.format_rows(listed) == text

    def test_choice_as_text(self) -> None:
        assert rows.format_choice([(0,), (0,), (), (1, 2)]) == "0*2,-*1,1/2*1"

    @given(ROWS)
    def test_rows_come_back(self, listed: Any) -> None:
        text = rows.format_rows(listed)
        assert rows.expand_rows(text) == listed
        assert rows.row_count(text) == len(listed)
        assert rows.taken(text) == sum(row != rows.ZERO for row in listed)

    @given(MEMBERS)
    def test_choices_come_back(self, listed: Any) -> None:
        text = rows.format_choice(listed)
        assert rows.expand_choice(text) == listed
        assert rows.row_count(text) == len(listed)

    @given(ROWS.filter(len), st.integers(1, 7), st.data())
    def test_ranges_are_the_elements(self, listed: Any, width: Any, data: Any) -> None:
        total = len(listed) * width
        first = data.draw(st.integers(0, total - 1))
        count = data.draw(st.integers(0, total - first))
        wanted = [
            None if listed[i // width] == rows.ZERO else listed[i // width] * width + i % width
            for i in range(first, first + count)
        ]
        found: list[int | None] = []
        for position, length, source in rows.row_ranges(
            rows.format_rows(listed), width, first, count
        ):
            assert position == len(found)
            found += [None if source is None else source + i for i in range(length)]
        assert found == wanted

    @given(st.lists(st.integers(-1, 9), min_size=1), st.data())
    def test_rows_of_rows(self, inner: Any, data: Any) -> None:
        outer = data.draw(st.lists(st.integers(-1, len(inner) - 1)))
        found = rows.take(rows.format_rows(inner), rows.format_rows(outer))
        assert rows.expand_rows(found) == [-1 if row == -1 else inner[row] for row in outer]


class TestAlgebra:
    A = ex.Source("a", "f", "w", "F16", (4, 3))
    B = ex.Source("b", "f", "w", "F16", (4, 3))

    def test_all_rows_are_the_operand(self) -> None:
        assert ex.take_rows(self.A, "0+4") is self.A
        assert ex.take_rows(ex.Rows(self.A, "3,2,1,0"), "3,2,1,0") == self.A

    def test_rows_are_taken_from_what_is_read(self) -> None:
        whole = ex.Cast(ex.Linear(((0.5, self.A), (2.0, ex.Delta(self.A, self.B, "F16")))), "F32")
        first = ex.Rows(self.A, "3,-1")
        delta = ex.Delta(first, ex.Rows(self.B, "3,-1"), "F16")
        expected = ex.Cast(ex.Linear(((0.5, first), (2.0, delta))), "F32")
        assert ex.take_rows(whole, "3,-1") == expected
        assert expected.shape == (2, 3)

    def test_of_a_choice(self) -> None:
        choice = ex.Choice((self.A, self.B), "0*1,1*3")
        taken = ex.take_rows(choice, "1,-1,0")
        assert taken.table == "1*1,-*1,0*1"
        assert taken.operands == (ex.Rows(self.A, "1,-1,0"), ex.Rows(self.B, "1,-1,0"))

    def test_json(self) -> None:
        whole = ex.Choice((ex.Rows(self.A, "1,0"), ex.Rows(ex.Mean(self.B), "0,0")), "0*1,0/1*1")
        assert from_json(to_json(whole)) == whole
        assert ex.label(whole) == "a"
        assert ex.sources(whole) == (self.A, self.B)


def _models(folder: Any, code: Any = "F16", odd: Any = False, width: Any = 37) -> Any:
    table = {
        "a": {"w": normal((50, width), 1, code)},
        "b": {"w": normal((61, width), 2, code)},
        "c": {"w": normal((50, width), 3, code)},
    }
    return Models(folder, table, odd=odd)


def _padded(models: Any, rows_out: Any = 70) -> Any:
    """A choice of rows of a, rows of b, their mean, zeros; then the mean of all these rows."""
    shuffled = random.Random(7)
    tables, members = {"a": [], "b": []}, []
    for row in range(rows_out):
        chosen = [(0,), (1,), (0, 1), ()][row % 4]
        members.append(chosen)
        tables["a"].append(shuffled.randrange(50) if 0 in chosen else rows.ZERO)
        tables["b"].append(shuffled.randrange(61) if 1 in chosen else rows.ZERO)
    taken = tuple(
        ex.take_rows(models.source(model), rows.format_rows(table))
        for model, table in tables.items()
    )
    choice = ex.Choice(taken, rows.format_choice(members))
    inside = rows.format_rows([*range(rows_out), rows.ZERO, rows.ZERO])
    padding = rows.format_rows([rows.ZERO] * rows_out + [0, 0])
    return ex.Choice(
        (ex.take_rows(choice, inside), ex.take_rows(ex.Mean(choice), padding)),
        f"0*{rows_out},1*2",
    )


class TestEngine:
    @pytest.mark.parametrize("code", ["F16", "BF16", "F32", "F64"])
    @pytest.mark.parametrize("odd", [False, True])
    def test_against_whole_tensors(self, tmp_path: Path, code: str, odd: bool) -> None:
        models = _models(tmp_path, code, odd)
        padded = _padded(models)
        other = ex.take_rows(models.source("c"), "49,0+40,-3,7+28")
        merged = ex.Linear(((0.25, padded), (0.75, other)))
        spec = models.spec({"one": (code, padded), "rows": (code, other), "sum": ("F32", merged)})
        with tuned(**SMALL):
            models.build(spec, threads=2)
        found = models.load()
        assert_same(found["rows"], reference(other, models.tensors))
        for name, whole in (("one", padded), ("sum", merged)):
            expected = rounded(reference(whole, models.tensors), "F32" if name == "sum" else code)
            # the mean adds in another order, all other rows are exact
            assert_same(found[name][:70], expected[:70])
            assert torch.allclose(found[name][70:].double(), expected[70:].double(), rtol=1e-2)

    def test_bytes_do_not_depend_on_blocks(self, tmp_path: Path) -> None:
        models = _models(tmp_path)
        spec = models.spec({"one": ("F16", _padded(models))})
        sums = {models.build(spec).sha256}
        for sizes in ({"block": 64, "windows": (4096,)}, {"block": 100, "windows": (8192,)}):
            with tuned(**sizes):
                sums |= {models.build(spec, threads=n).sha256 for n in (1, 3)}
        assert len(sums) == 1

    def test_only_the_rows_are_read(self, tmp_path: Path) -> None:
        models = _models(tmp_path)
        taken = ex.take_rows(models.source("a"), "3+2,-40")
        record = models.build(models.spec({"one": ("F16", taken)}))
        assert record.bytes_read == 2 * 37 * 2

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_rows_of_a_method(self, tmp_path: Path, numerics: Numerics) -> None:
        models = _models(tmp_path)
        inputs = (models.source("a"), models.source("c"))
        call = ex.Call("slerp", inputs, 0, (("t", 0.3),), (), "w", ("a", "c"), (50, 37))
        plain = models.spec({"one": ("F16", call)}, numerics=numerics)
        models.build(plain, "plain.safetensors")
        whole = models.load("plain.safetensors")["one"]
        table = "49,-1,0+20,11"
        spec = models.spec({"one": ("F16", ex.take_rows(call, table))}, numerics=numerics)
        with tuned(**SMALL):
            models.build(spec)
        zero = torch.zeros(37, dtype=torch.float16)
        expected = [zero if row == -1 else whole[row] for row in rows.expand_rows(table)]
        assert_same(models.load()["one"], torch.stack(expected))
        sources = {key: models.paths[key] for key in spec.required_files()}
        found = check_shard(spec, tmp_path / "out.safetensors", sources, [])
        assert found["passed"] and not found["not_sampled"]

    @pytest.mark.parametrize("name", ["ties", "dare_ties", "della", "nuslerp", "model_stock"])
    @pytest.mark.parametrize("native", [True, False])
    def test_rows_of_what_depends_on_the_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, native: bool
    ) -> None:
        """Thresholds, random numbers, ranks within rows, numbers of vectors; also rows of rows."""
        if not native:
            monkeypatch.setattr("shardmerge.engine.native.is_usable", lambda: False)
        group = kernel_cases.ordinary(
            name, (50, 37), 3, torch.float16, nuslerp_flatten=False, filter_wise=True, density=0.5
        )
        models = Models(tmp_path, {f"m{i}": {"w": one} for i, one in enumerate(group.tensors)})
        call = call_of(name, group, [models.source(one) for one in models.tensors])
        other = call_of(
            name, group, [ex.Rows(call, rows.format_rows(range(49, -1, -1))), *call.inputs[1:]]
        )
        table = "49,-1,0+20,11,11,30+5,-3"
        for number, whole in enumerate((call, other)):
            made = {"all": ("F16", whole), "taken": ("F16", ex.Rows(whole, table))}
            with tuned(**SMALL):
                models.build(models.spec(made), f"{number}.safetensors", threads=2)
            found = models.load(f"{number}.safetensors")
            zero = torch.zeros(37, dtype=torch.float16)
            taken = [zero if row == -1 else found["all"][row] for row in rows.expand_rows(table)]
            assert_same(found["taken"], torch.stack(taken))

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_rows_of_what_an_adapter_adds(self, tmp_path: Path, numerics: Numerics) -> None:
        factors = {"b": normal((50, 3), 4, "F32"), "a": normal((3, 37), 5, "F32")}
        models = Models(tmp_path, {"m": {"w": normal((50, 37), 1)}, "l": factors})
        update = ex.LowRank(models.source("l", "b"), models.source("l", "a"), 0.5, False, "F32")
        merged = ex.Linear(((1.0, models.source("m")), (1.0, update)))
        models.build(models.spec({"one": ("F32", merged)}, numerics=numerics), "plain.safetensors")
        whole = models.load("plain.safetensors")["one"]
        spec = models.spec({"one": ("F32", ex.take_rows(merged, "49,0+20,-1"))}, numerics=numerics)
        with tuned(**SMALL):
            models.build(spec)
        expected = torch.cat([whole[49:], whole[:20], torch.zeros(1, 37)])
        assert_same(models.load()["one"], expected)
        sources = {key: models.paths[key] for key in spec.required_files()}
        assert check_shard(spec, tmp_path / "out.safetensors", sources, [])["passed"]

    @pytest.mark.parametrize("code", ["F16", "BF16", "F32", "F64"])
    @pytest.mark.parametrize(
        "shape", [(900, 37), (70, 7), (33, 140_003), (501,), (1, 9), (40, 3, 11)]
    )
    def test_means_of_mergekit_are_torchs(
        self, tmp_path: Path, code: str, shape: tuple[int, ...]
    ) -> None:
        whole = normal(shape, 1, code, scale=3.0) + 1
        models = Models(tmp_path, {"a": {"w": whole}})
        mean = ex.take_rows(ex.Mean(models.source("a")), "0,0")
        models.build(models.spec({"one": (code, mean)}, numerics=MERGEKIT))
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # as jobs have it; of several each adds up a part
        expected = whole.view(len(whole), -1).mean(dim=0).view(1, *shape[1:])
        torch.set_num_threads(before)
        assert_same(models.load()["one"], torch.cat([expected, expected]))

    def test_rows_of_one_dimension(self, tmp_path: Path) -> None:
        models = Models(tmp_path, {"a": {"w": normal((50,), 1)}})
        bias = models.source("a")
        padded = ex.Choice(
            (ex.take_rows(bias, "0+50,-2"), ex.take_rows(ex.Mean(bias), "-50,0,0")), "0*50,1*2"
        )
        models.build(models.spec({"one": ("F16", padded)}))
        mean = models.tensors["a"]["w"].double().mean().half()
        assert_same(models.load()["one"], torch.cat([models.tensors["a"]["w"], mean.repeat(2)]))

    def test_mergekit_rounds_every_step(self, tmp_path: Path) -> None:
        models = _models(tmp_path)
        a, c = models.source("a"), models.source("c")
        choice = ex.Choice((a, c), "0/1*50")
        spec = models.spec({"one": ("F16", choice)}, numerics=MERGEKIT)
        models.build(spec)
        total = torch.zeros(50, 37, dtype=torch.float16)
        for model in "ac":
            total = total + models.tensors[model]["w"]
        assert_same(models.load()["one"], total / 2)

    def test_memory_stays_flat(self, tmp_path: Path) -> None:
        models = _models(tmp_path)
        padded, plain = (
            models.spec({"one": ("F16", one)}) for one in (_padded(models), models.source("a"))
        )
        assert workspace_bytes(make_tasks(padded)) == workspace_bytes(make_tasks(plain))

    def test_infinite_values_that_no_row_has(self, tmp_path: Path) -> None:
        table = {"a": {"w": torch.full((4, 3), 60000.0, dtype=torch.float16)}}
        models = Models(tmp_path, table)
        double = ex.Linear(((2.0, ex.take_rows(models.source("a"), "1,-1")),))
        with pytest.raises(UserError, match="infinite or NaN where no source is"):
            models.build(models.spec({"one": ("F16", double)}))


class TestCheck:
    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    @pytest.mark.parametrize("width", [37, 300])
    def test_a_right_shard_passes_and_a_changed_row_does_not(
        self, tmp_path: Path, numerics: Numerics, width: int
    ) -> None:
        models = _models(tmp_path, width=width)
        spec = models.spec({"one": ("F16", _padded(models))}, numerics=numerics)
        models.build(spec)
        shard = tmp_path / "out.safetensors"
        sources = {key: models.paths[key] for key in spec.required_files()}
        found = check_shard(spec, shard, sources, [])
        assert found["elements"] == min(72 * width, 8160)
        # torch's own mean of rows is what mergekit's bits are
        way = "independently" if numerics == FLOAT32 else "by_engine_steps"
        assert found[f"recomputed_{way}"] == 1
        other = dataclasses.replace(spec.tensors[0].expression, table="1*1,0*69,1*2")
        wrong = models.spec({"one": ("F16", other)}, numerics=numerics)
        with pytest.raises(UserError, match="must be"):
            check_shard(wrong, shard, sources, [])
