"""Windows are as large as memory allows, whatever is looked at to find that out."""

from __future__ import annotations

import random

import pytest

from shardmerge.engine.layout import Layout, Segment, choose_windows
from shardmerge.engine.locations import Location
from shardmerge.engine.memory import Tuning


def layout(seed: int) -> Layout:
    """Return a file of copied and computed tensors of many sizes, types and numbers of sources."""
    chance = random.Random(seed)
    header = bytes(chance.randrange(1, 300))
    position, segments = len(header), []
    for number in range(chance.randrange(12)):
        itemsize = chance.choice((2, 4))
        end = position + itemsize * chance.choice((1, 7, 500, 3000, 20_000))
        if chance.random() < 0.3:
            segments.append(Segment(position, end, copy=(0, 0)))
        else:
            kinds = chance.choices(("F16", "F32", "F64"), k=chance.randrange(5))
            leaves = tuple(Location(0, 0, kind) for kind in kinds)
            segments.append(Segment(position, end, None, number, itemsize, leaves))
        position = end
    return Layout(header, position, tuple(segments), None)


@pytest.mark.parametrize("buffers", [100, 10_000, 40_000, 100_000, 1_000_000, 100_000_000])
def test_the_largest_that_fits(buffers: int) -> None:
    tuning = Tuning(slots=3, buffers=buffers, windows=tuple(65536 >> k for k in range(8)))
    chosen = set()
    for seed in range(60):
        file = layout(seed)
        for length in tuning.windows:
            windows = [*file.windows(length)]
            arena = max((window.arena for window in windows), default=0)
            if tuning.slots * (length + arena) <= buffers:
                break
        assert choose_windows(file, tuning) == (length, arena, windows)
        chosen.add(length)
    assert len(chosen) > 1 or buffers in (100, 100_000_000)
