"""Where the time of merge jobs goes, from their records."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardmerge.base.text import human_bytes, human_seconds, plural
from shardmerge.plan.records import MergeRecord
from shardmerge.report.canvas import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    WIDTH,
    figure,
    message,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a job is busy with, in the order in which it happens.
PHASE_COLOURS = {"start": GREY, "read": SKY, "compute": ORANGE, "write": BLUE, "hash": GREEN}
#: If there are more shards, only the slowest are shown.
_MOST = 24
#: Inches.
_ROW, _TOP, _BOTTOM, _LEFT, _RIGHT = 0.2, 1.0, 0.5, 1.8, 1.9


@dataclass(frozen=True)
class Timing:
    """What one job took.

    Args:
        name: Of its shard.
        seconds: Busy time of each phase, summed over threads.
        wall: Seconds from start to end.
        read, written: Bytes of its inputs and of its output.
        copy: Whether it only copied a file.
    """

    name: str
    seconds: Mapping[str, float]
    wall: float
    read: int
    written: int
    copy: bool = False


def timing(name: str, record: MergeRecord) -> Timing:
    """Return the timing in a job's record."""
    seconds = record.seconds
    return Timing(
        name=name,
        seconds={phase: seconds.get(phase, 0.0) for phase in PHASE_COLOURS},
        wall=seconds["total"],
        read=record.bytes_read,
        written=record.size,
        copy=record.whole_copy,
    )


def draw_timings(timings: Sequence[Timing], output: str | os.PathLike[str]) -> None:
    """Draw the time of every job by phase, the slowest only if there are many.

    Args:
        timings: Of the jobs, in the order of the shards.
        output: The file to write.
    """
    title = "Where the time of the merge jobs goes"
    if not timings:
        message(output, title, "No job has run.")
        return
    shown = list(timings)
    what = plural(len(timings), "shard")
    if len(timings) > _MOST:
        slowest = sorted(timings, key=lambda t: -t.wall)[:_MOST]
        shown = [t for t in timings if t in slowest]
        what += f", the {_MOST} slowest shown"
    height = _TOP + len(shown) * _ROW + _BOTTOM
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        note = f"{what}: {_total(timings)}. Bars: busy time, summed over threads. Lines: wall time."
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        _write_phases(drawing, timings, 1 - 0.7 / height)
        axes = drawing.add_axes(
            (
                _LEFT / WIDTH,
                _BOTTOM / height,
                1 - (_LEFT + _RIGHT) / WIDTH,
                len(shown) * _ROW / height,
            )
        )
        _draw_bars(axes, shown)


def _total(timings: Sequence[Timing]) -> str:
    read, written = sum(t.read for t in timings), sum(t.written for t in timings)
    wall = sum(t.wall for t in timings)
    return (
        f"{human_bytes(read)} read, {human_bytes(written)} made in {human_seconds(wall)}"
        f" of jobs ({_rate(written, wall)})"
    )


def _rate(count: int, seconds: float) -> str:
    return f"{human_bytes(count / seconds)}/s" if seconds > 0 else "-"


def _write_phases(drawing: Any, timings: Sequence[Timing], y: float) -> None:
    """Write each phase's name in its colour with its share: the legend and the sum in one line."""
    sums = {phase: sum(t.seconds[phase] for t in timings) for phase in PHASE_COLOURS}
    busy = sum(sums.values()) or 1.0
    for i, (phase, seconds) in enumerate(sums.items()):
        x = 0.012 + i * 0.197
        drawing.text(x, y, "■", color=PHASE_COLOURS[phase], size=10, va="center")
        text = f"{phase} {human_seconds(seconds)} ({100 * seconds / busy:.0f} %)"
        drawing.text(x + 0.016, y, text, size=8.5, va="center")


def _draw_bars(axes: Axes, shown: Sequence[Timing]) -> None:
    rows = range(len(shown))
    left = [0.0] * len(shown)
    for phase, colour in PHASE_COLOURS.items():
        values = [t.seconds[phase] for t in shown]
        axes.barh(rows, values, left=left, color=colour, height=0.72)
        left = [a + b for a, b in zip(left, values, strict=True)]
    longest = max(*left, *(t.wall for t in shown), 1e-9)
    for row, t in zip(rows, shown, strict=True):
        axes.plot([t.wall] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.4)
        text = f"{human_seconds(t.wall)}, {_rate(t.written, t.wall)}{', copy' if t.copy else ''}"
        axes.text(1.015 * longest, row, text, size=8, va="center")
    axes.set_yticks(rows, [t.name for t in shown])
    axes.set_xlim(0, longest)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("seconds")
