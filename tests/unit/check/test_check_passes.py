"""Checks of methods in passes: of tensors of any size, without torch, and a fault is found."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import engine_cases as cases
from helpers import kernel_cases, method_bytes
from helpers.told_shard import Told
from shardmerge.algebra.samples import spread_tiles
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32
from shardmerge.base.safetensors import read_header
from shardmerge.check import kernels, recorded
from shardmerge.check.shard import check_shard
from shardmerge.engine import native, rank_passes, tiles
from shardmerge.engine.call_tiles import to_text
from shardmerge.methods.registry import method

#: More elements than are sampled, in rows and tiles that do not end together.
SHAPE = (37, 3001)

#: Of each tensor what the job that wrote it found, call by call.
Passes = dict[str, list[list[Any]]]

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[cases.Models, ShardSpec, Passes]:
    """Return models and a shard of a tensor of each method in passes, which is built."""
    made = method_bytes.groups(SHAPE, torch.float16)
    made = {k: v for k, v in made.items() if method(v[0]).rendering(FLOAT32).passes}
    most = max((group.tensors for _, group in made.values()), key=len)
    folder = tmp_path_factory.mktemp("passes")
    models = cases.Models(folder, {f"m{i}": {"w": t} for i, t in enumerate(most)})
    rows = {
        label: ("F16", method_bytes.call_of(name, group, models))
        for label, (name, group) in made.items()
    }
    spec = models.spec(rows)
    return models, spec, dict(models.recorded(spec).passes)


def test_they_pass_whatever_their_size(
    built: tuple[cases.Models, ShardSpec, Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, spec, _ = built
    monkeypatch.setattr(kernels, "WHOLE", 100)
    found = check_shard(spec, models.folder / "out.safetensors", models.paths, [])
    assert found["not_sampled"] == []
    assert found["undecided"] == 0
    assert found["recomputed_by_engine_steps"] == len(spec.tensors)


def test_they_need_no_torch(built: tuple[cases.Models, ShardSpec, Passes]) -> None:
    models, spec, _ = built
    script = (
        "import json, pathlib, sys\n"
        "from shardmerge.algebra.spec import ShardSpec\n"
        "from shardmerge.check.shard import check_shard\n"
        "spec, folder = ShardSpec.from_json(json.load(sys.stdin)), pathlib.Path(sys.argv[1])\n"
        "paths = {key: folder / f'{key[0]}.safetensors' for key in spec.files}\n"
        "check_shard(spec, folder / 'out.safetensors', paths, [])\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, models.folder],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        input=json.dumps(spec.to_json()),
        text=True,
        check=True,
    )


def test_a_fault_is_found_in_each(
    built: tuple[cases.Models, ShardSpec, Passes], tmp_path: Path
) -> None:
    models, spec, _ = built
    data = (models.folder / "out.safetensors").read_bytes()
    for tensor in spec.tensors:
        entry = read_header(models.folder / "out.safetensors").tensors[tensor.name]
        wrong = bytearray(data)
        values = torch.frombuffer(wrong, dtype=torch.float16)[entry.begin // 2 : entry.end // 2]
        values[:200] *= 1.004
        path = tmp_path / "wrong.safetensors"
        path.write_bytes(wrong)
        with pytest.raises(UserError, match="must be"):
            check_shard(spec, path, models.paths, [])


class TestRecorded:
    def check(
        self, built: tuple[cases.Models, ShardSpec, Passes], **changes: list[list[Any]]
    ) -> dict[str, Any]:
        models, spec, passes = built
        assert changes.keys() <= passes.keys()
        changed = passes | changes
        shard = models.folder / "out.safetensors"
        return check_shard(spec, shard, models.paths, [], Told(passes=changed))

    def test_is_believed_if_it_is_right(
        self,
        built: tuple[cases.Models, ShardSpec, Passes],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """No threshold is searched for, and few tiles are added up."""
        for name in ("find_bands", "find_keys"):
            monkeypatch.setattr(rank_passes, name, None)
        monkeypatch.setattr(recorded, "spread_tiles", lambda name, number: [0])
        found = self.check(built)
        assert found["not_sampled"] == [] and found["undecided"] == 0

    def test_what_is_missing_is_found_again(
        self, built: tuple[cases.Models, ShardSpec, Passes]
    ) -> None:
        assert self.check(built, ties=[], slerp=[[]])["not_sampled"] == []

    @pytest.mark.parametrize(
        ("name", "place", "value"),
        [
            ("ties", 0, lambda band: band[0] + 1),
            ("ties", 0, lambda band: band[0] - 1),
            ("ties", 3, lambda band: 5),
            ("breadcrumbs", 0, lambda band: band[0] + 1),
            ("breadcrumbs", 1, lambda band: band[1] - 1),
            ("sce", 0, lambda band: band[0] + 1),
            ("sce", 1, lambda band: band[0]),
            ("sce", 6, lambda band: band[6] + 1),
            ("sce", 6, lambda band: str(band[6])),
            ("ties", 1, lambda band: "7"),
        ],
    )
    def test_a_threshold_beside_is_refused(
        self,
        built: tuple[cases.Models, ShardSpec, Passes],
        name: str,
        place: int,
        value: Callable[[list[int]], Any],
    ) -> None:
        rows = json.loads(json.dumps(built[2][name]))
        band = next(one for one in rows[0] if isinstance(one, list))[0]
        band[place] = value(band)
        with pytest.raises(UserError, match="thresholds"):
            self.check(built, **{name: rows})

    def test_a_record_of_an_earlier_version_is_refused(
        self, built: tuple[cases.Models, ShardSpec, Passes]
    ) -> None:
        """It had the number of those that vary tile by tile, before the threshold."""
        (bands, *others), *_ = built[2]["sce"]
        old = [[to_text(np.array([9.0])), [row[:6] for row in bands], *others]]
        with pytest.raises(UserError, match="thresholds") as raised:
            self.check(built, sce=old)
        assert "an earlier version" in str(raised.value)

    @pytest.mark.parametrize("wrong", [0, -1, 1, "7", None])
    def test_an_order_statistic_beside_is_refused(
        self, built: tuple[cases.Models, ShardSpec, Passes], wrong: object
    ) -> None:
        rows = json.loads(json.dumps(built[2]["arcee_fusion"]))
        keys = next(one for one in rows[0] if isinstance(one, list))
        keys[1] = keys[1] + wrong if wrong in (1, -1) else wrong
        with pytest.raises(UserError, match="order statistics"):
            self.check(built, arcee_fusion=rows)

    @pytest.mark.parametrize("wrong", ["", "no base64", "AAAAAAAAAAA=", [[1, 2]]])
    def test_damaged_sums_are_refused(
        self, built: tuple[cases.Models, ShardSpec, Passes], wrong: object
    ) -> None:
        with pytest.raises(UserError, match="sums"):
            self.check(built, slerp=[[wrong]])


#: More elements than are counted without a sample, of which some tiles are not looked at again.
#: Rows of whole vectors, whose numbers are found beside, and of others.
LARGE = ((190, 2816), (175, 3001))
#: Tiles of each.
TILES = 5


@pytest.fixture(scope="module", params=LARGE)
def large(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[cases.Models, ShardSpec, Passes]:
    """Return models and a built shard of a large tensor of each method with thresholds."""
    names = {"ties": {}, "breadcrumbs": {}, "sce": {"select_topk": 0.5}, "arcee_fusion": {}}
    made = {
        name: kernel_cases.ordinary(name, request.param, 3, torch.float16, **values)
        for name, values in names.items()
    }
    most = max((group.tensors for group in made.values()), key=len)
    folder = tmp_path_factory.mktemp("large")
    models = cases.Models(folder, {f"m{i}": {"w": t} for i, t in enumerate(most)})
    rows = {
        name: ("F16", replace(method_bytes.call_of(name, group, models), tensor=name))
        for name, group in made.items()
    }
    spec = models.spec(rows)
    return models, spec, dict(models.recorded(spec).passes)


class TestCountsOfTiles:
    """How many elements of each tile lie beside thresholds is recorded."""

    check = TestRecorded.check
    names = pytest.mark.parametrize("name", ["ties", "breadcrumbs", "sce", "arcee_fusion"])

    @staticmethod
    def found(passes: Passes, name: str) -> tuple[list[Any], int]:
        """Return a copy of what is recorded of a call, and the place of its thresholds."""
        (call,) = json.loads(json.dumps(passes[name]))
        place = next(i for i, one in enumerate(call) if isinstance(one, list))
        assert isinstance(call[place][-1], str), "no counts are recorded"
        return call, place

    def test_few_elements_are_counted_again(
        self,
        large: tuple[cases.Models, ShardSpec, Passes],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        counted = []
        counts = tiles.ReducedTiles._counts

        def noted(self: tiles.ReducedTiles, first: int, count: int) -> np.ndarray:
            counted.append(count)
            return counts(self, first, count)

        monkeypatch.setattr(tiles.ReducedTiles, "_counts", noted)
        self.check(large)
        assert 0 < sum(counted) < 0.5 * math.prod(large[1].tensors[0].shape) * len(large[2])

    def test_those_of_all_tiles_are_right(
        self,
        large: tuple[cases.Models, ShardSpec, Passes],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(recorded, "spread_tiles", lambda name, number: range(number))
        self.check(large)

    @names
    def test_without_them_all_are_counted(
        self, large: tuple[cases.Models, ShardSpec, Passes], name: str
    ) -> None:
        """As in records of an earlier version; a wrong threshold is refused there too."""
        call, place = self.found(large[2], name)
        call[place].pop()
        self.check(large, **{name: [call]})
        self.refused(large, name, call, place)

    @names
    def test_another_threshold_is_refused(
        self, large: tuple[cases.Models, ShardSpec, Passes], name: str
    ) -> None:
        self.refused(large, name, *self.found(large[2], name))

    def refused(
        self,
        large: tuple[cases.Models, ShardSpec, Passes],
        name: str,
        call: list[Any],
        place: int,
    ) -> None:
        row = call[place] if name == "arcee_fusion" else call[place][0]
        row[0] += 1 << 13  # the next number of float16
        with pytest.raises(UserError, match="recorded that are not those of the sources"):
            self.check(large, **{name: [call]})

    @names
    def test_other_counts_are_refused(
        self, large: tuple[cases.Models, ShardSpec, Passes], name: str
    ) -> None:
        """Of a tile that is looked at or is not; moved to another; too few, and no numbers."""
        call, place = self.found(large[2], name)
        text = call[place][-1]
        numbers = recorded._numbers(text, "<i4")
        chosen = spread_tiles(name, TILES)
        assert len(numbers) % TILES == 0 and 0 < len(chosen) < TILES
        (seen, *_), unseen = chosen, next(i for i in range(TILES) if i not in chosen)
        large_one = 1 << 20  # the rank may be any of many that are equal
        for changes in (
            {seen: 1},
            {seen: 1, unseen: -1},
            {unseen: large_one},
            {unseen: -large_one},
        ):
            other = numbers.copy()
            for tile, change in changes.items():
                other[tile] += change
            self.are_refused(large, name, call, place, to_text(other, "<i4"))
        for other in ("", "no numbers", to_text(numbers[:-1], "<i4"), to_text(numbers)):
            self.are_refused(large, name, call, place, other)

    def are_refused(
        self,
        large: tuple[cases.Models, ShardSpec, Passes],
        name: str,
        call: list[Any],
        place: int,
        text: str,
    ) -> None:
        call[place][-1] = text
        with pytest.raises(UserError, match="recorded that are not those of the sources"):
            self.check(large, **{name: [call]})
