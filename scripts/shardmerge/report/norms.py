"""How far fine-tuned tensors are from their base, from the records of the jobs that read both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import ShardSpec, delta_name
from shardmerge.base.weightfolders import component_of, in_folder, shard_name
from shardmerge.compose.architecture.names import layer_of, module_of
from shardmerge.plan.records import MergeRecord
from shardmerge.report.coefficients import Spread
from shardmerge.report.frame import Cell, Frame

_HEADER = "tensor layer module task_vector coefficient norm base_norm relative_norm".split()

#: A record's row: the models that a task vector is made of, its sum of squares, its base's.
_Row = tuple[list[str], float, float | None]


@dataclass(frozen=True)
class Norm:
    """A tensor's task vector: its label, its Frobenius norm and its base's."""

    tensor: str
    label: str
    norm: float
    base: float

    @property
    def relative(self) -> float:
        """The norm over the base's, NaN if the base is 0 everywhere."""
        return self.norm / self.base if self.base else math.nan


def measured(specs: Mapping[str, ShardSpec], records: Mapping[str, MergeRecord]) -> list[Norm]:
    """Return what jobs measured of a build's task vectors, in the order of its tensors.

    Args:
        specs: Of the build's shards, by name.
        records: Of its merge jobs, and of the jobs that stored task vectors: these know the
            bases, and call a tensor by ``spec.delta_name``. By path.
    """
    rows: dict[str, Iterable[_Row]] = {}
    for path, record in records.items():
        folder = component_of(shard_name(path))
        rows |= {in_folder(folder, tensor): row for tensor, row in record.deltas.items()}
    found = []
    for file, spec in specs.items():
        for tensor in spec.tensors:
            name = in_folder(component_of(file), tensor.name)
            for delta in ex.deltas(tensor.expression):
                row = _row(delta, rows.get(name, [])) or _row(
                    delta, rows.get(delta_name(delta, spec.files), [])
                )
                if row:
                    own, base = map(math.sqrt, row)
                    found.append(Norm(name, ex.label(delta), own, base))
    return found


def norm_cells(norms: Iterable[Norm], frame: Frame) -> dict[str, dict[Cell, Spread]]:
    """Return each task vector's relative norm in every cell; experts count as one tensor."""
    groups: dict[str, dict[Cell, list[Norm]]] = {}
    for norm in norms:
        if not math.isnan(norm.relative):
            cells = groups.setdefault(norm.label, {})
            cells.setdefault(frame.cells[norm.tensor], []).append(norm)
    return {
        label: {cell: _spread(group) for cell, group in cells.items()}
        for label, cells in groups.items()
    }


def norm_table(norms: Iterable[Norm], coefficients: Mapping[str, Any]) -> str:
    """Return the norms as tab-separated text, a line for each tensor and task vector.

    Args:
        norms: What was measured.
        coefficients: Terms of each tensor, as a build's description has them.
    """
    lines = [_HEADER]
    for norm in norms:
        layer = layer_of(norm.tensor)
        lines.append(
            [
                norm.tensor,
                str(layer[1]) if layer else "",
                module_of(norm.tensor),
                norm.label,
                f"{dict(coefficients[norm.tensor]).get(norm.label, math.nan):.6g}",
                f"{norm.norm:.6g}",
                f"{norm.base:.6g}",
                f"{norm.relative:.6g}",
            ]
        )
    return "".join("\t".join(line) + "\n" for line in lines)


def _row(delta: ex.Delta, rows: Iterable[_Row]) -> tuple[float, float] | None:
    models = list(dict.fromkeys(source.model for source in ex.sources(delta)))
    for names, own, base in rows:
        if list(names) == models and base is not None:
            return own, base
    return None


def _spread(group: list[Norm]) -> Spread:
    own = math.fsum(n.norm**2 for n in group)
    base = math.fsum(n.base**2 for n in group)
    relative = [n.relative for n in group]
    return Spread(math.sqrt(own / base), min(relative), max(relative))
