"""What a LoRA adapter keeps of its model's update: error and rank of every module."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

from shardmerge.algebra.factorization import FactorModule, ModuleRecord
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.text import plural
from shardmerge.compose.architecture.names import layer_of, module_of
from shardmerge.plan.adapter_description import AdapterDescription, MadeModule
from shardmerge.report import html
from shardmerge.report.canvas import message
from shardmerge.report.coefficients import Spread
from shardmerge.report.frame import Cell, frame_of
from shardmerge.report.heatmap import Scale, draw_heatmap

_HEADER = "module layer rank norm error relative_error energy largest_value smallest_value".split()


def adapter_table(made: Sequence[MadeModule]) -> str:
    """Return what became of each module as tab-separated text."""
    lines = [_HEADER, *(_row(module, record) for module, record in made)]
    return "".join("\t".join(line) + "\n" for line in lines)


def _row(module: FactorModule, record: ModuleRecord) -> list[str]:
    layer = layer_of(module.tensor)
    values = record.values or (math.nan,)
    return [
        module.name,
        str(layer[1]) if layer else "",
        str(record.rank),
        *(f"{value:.6g}" for value in (record.norm, record.error, record.relative, record.energy)),
        *(f"{value:.6g}" for value in (max(values), min(values))),
    ]


def adapter_page(description: AdapterDescription, made: Sequence[MadeModule]) -> str:
    """Return an HTML page about an adapter: a row for each kind of module."""
    groups: dict[str, list[ModuleRecord]] = {}
    for module, record in made:
        groups.setdefault(module_of(module.tensor), []).append(record)
    rows = [
        [
            name,
            str(len(records)),
            _span([r.rank for r in records]),
            f"{_together(records):.4f}",
            f"{max(r.relative for r in records):.4f}",
        ]
        for name, records in groups.items()
    ]
    unchanged = [module.name for module, record in made if not record.rank]
    notes = (
        [
            f"{plural(len(description.left), 'tensor')} that differ are not in the adapter: "
            + ", ".join(sorted({module_of(tensor) for tensor in description.left}))
        ]
        if description.left
        else []
    )
    if unchanged or description.equal:
        count = len(unchanged) + len(description.equal)
        notes.append(f"{plural(count, 'module')} are as in the base and need no factors.")
    asked = [
        ("model", description.model),
        ("base model", description.base),
        ("decomposition", description.decomposition),
        ("rank", "all" if description.rank is None else f"at most {description.rank}"),
        *([("energy", f"{description.energy:g}")] if description.energy else []),
        *([("singular values", f"above {description.cut:g}")] if description.cut else []),
        ("type of factors", DTYPES[description.dtype].name),
        ("saved whole", ", ".join(description.saved) or "nothing"),
    ]
    overall = _together([record for _, record in made])
    return html.page(
        f"{description.name}: a LoRA adapter",
        [
            html.paragraph(
                f"The adapter leaves out {overall:.3%} of the norm of the updates that it is made "
                "of.",
            ),
            html.html_table((), asked),
            html.heading("What is left out"),
            html.html_table(
                ("module", "layers", "rank", "relative error", "largest in a layer"),
                rows,
                numbers=(1, 2, 3, 4),
            ),
            *(html.paragraph(note, "note") for note in notes),
        ],
    )


def draw_errors(name: str, made: Sequence[MadeModule], output: str | os.PathLike[str]) -> None:
    """Draw the relative error of every module of an adapter."""
    title = f"{name}: what the adapter leaves out of each update"
    note = "Norm of what the factors miss over the norm of the update. White: not in the adapter."
    _draw(title, note, "relative error", made, lambda record: record.relative, output)


def draw_ranks(name: str, made: Sequence[MadeModule], output: str | os.PathLike[str]) -> None:
    """Draw the rank of every module of an adapter."""
    title = f"{name}: the rank of each update"
    note = "Number of singular values that are kept. White: not in the adapter."
    _draw(title, note, "rank", made, lambda record: float(record.rank), output)


def _draw(
    title: str,
    note: str,
    label: str,
    made: Sequence[MadeModule],
    of: Callable[[ModuleRecord], float],
    output: str | os.PathLike[str],
) -> None:
    if not made:
        message(output, title, "All of the adapter's modules are saved whole.")
        return
    frame = frame_of([module.tensor for module, _ in made])
    groups: dict[Cell, list[float]] = {}
    for module, record in made:
        groups.setdefault(frame.cells[module.tensor], []).append(of(record))
    cells = {cell: Spread(math.fsum(v) / len(v), min(v), max(v)) for cell, v in groups.items()}
    largest = max(spread.mean for spread in cells.values())
    scale = Scale("viridis_r", label, 0.0, largest or 1.0)
    draw_heatmap(output, title, note, frame, {"": cells}, scale)


def _together(records: Sequence[ModuleRecord]) -> float:
    """Return the relative error of several updates as if they were one."""
    norm = math.fsum(record.norm**2 for record in records)
    return math.sqrt(math.fsum(r.error**2 for r in records) / norm) if norm else 0.0


def _span(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"
