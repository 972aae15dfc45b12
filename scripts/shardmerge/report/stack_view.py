"""A stack of layers, drawn: for each run of output layers, where in which model it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from shardmerge.recipe.stage import Stage
from shardmerge.report.terminal import Terminal

#: Columns that the layers of a model take.
_WIDTH = 32


class LayerRun(NamedTuple):
    """Layers of a model, half-open."""

    model: str
    begin: int
    end: int


def layer_runs(stage: Stage) -> list[list[LayerRun]]:
    """Return what each run of a stage's output layers is made from; nothing if it is no stack."""
    if len(stage.slices) < 2 or len(stage.modules) > 1 or any(s.whole for s in stage.slices):
        return []
    return [
        [LayerRun(str(item.model), *item.layers) for item in piece.inputs if item.layers]
        for piece in stage.slices
    ]


def stack_lines(
    runs: Sequence[Sequence[LayerRun]], shorten: Callable[[str], str], terminal: Terminal
) -> list[str]:
    """Return a drawing with the last layers on top.

    Args:
        runs: As ``layer_runs`` returns them.
        shorten: Makes short names of models.
        terminal: Its width decides how much room the layers have.
    """
    if not runs:
        return []
    most = max(run.end for sources in runs for run in sources)
    width = min(_WIDTH, most, max(8, terminal.width // 3))
    place, rows = 0, []
    for sources in runs:
        count = sources[0].end - sources[0].begin
        names = " + ".join(f"{shorten(r.model)} {_numbers(r.begin, r.end)}" for r in sources)
        cells = [_is_drawn(sources, column, width, most) for column in range(width)]
        drawn = "".join("#" if cell else "." for cell in cells)
        rows.append((_numbers(place, place + count), drawn, names))
        place += count
    first = max(len(numbers) for numbers, _, _ in rows)
    title = f"  stack of {place} layers, the last on top: output layers, place in the model, source"
    return ["", title, *(f"    {n.ljust(first)}  {d}  {names}" for n, d, names in reversed(rows))]


def _is_drawn(sources: Sequence[LayerRun], column: int, width: int, most: int) -> bool:
    begin, end = column * most // width, (column + 1) * most // width
    return any(run.begin < end and begin < run.end for run in sources)


def _numbers(begin: int, end: int) -> str:
    return str(begin) if end - begin == 1 else f"{begin}-{end - 1}"
