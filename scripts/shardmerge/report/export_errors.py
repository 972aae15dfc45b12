"""How far exports are from their model, of all that the summary tells of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import median

from shardmerge.base.text import human_bytes
from shardmerge.compose.architecture.names import module_of
from shardmerge.export.record import ExportRecord
from shardmerge.export.registry import form_of
from shardmerge.report.html import heading, html_table, paragraph

_ABOUT = (
    "The error of a tensor is the root of the mean square of the differences to the model's "
    "values, in parts of that of the values. Of a module of all layers stand here the median and, "
    "in brackets, the largest; provenance.json of the export has that of every tensor."
)
_WORST = 3
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def exports_in_summary(records: Sequence[ExportRecord]) -> Iterator[str]:
    """Yield the HTML on exports, nothing if there are none.

    Args:
        records: What their checks found.
    """
    if not records:
        return
    yield heading("Exports")
    header = ("form", "variant", "size", "bits per weight", "median error", "largest error")
    rows = [
        (
            *_called(record),
            human_bytes(record.size),
            f"{record.bits_per_weight:.2f}",
            f"{record.errors.median:.2g}",
            f"{record.errors.largest:.2g}",
        )
        for record in records
    ]
    yield html_table(header, rows, numbers=(2, 3, 4, 5))
    for record in records:
        header = (f"module in {record.variant}", "tensors", "error")
        yield html_table(header, list(_by_module(record)), numbers=(1, 2))
    header = ("form", "variant", "tensors that are farthest from the model's, with their errors")
    yield html_table(header, [(*_called(r), _farthest(r)) for r in records])
    yield paragraph(_ABOUT, "note")


def _called(record: ExportRecord) -> tuple[str, str]:
    return form_of(record.form).title, record.variant


def _by_module(record: ExportRecord) -> Iterator[tuple[str, str, str]]:
    """Yield the errors of each kind of module, of all layers and experts together."""
    found: dict[str, list[float]] = {}
    for name, error in record.errors.tensors.items():
        found.setdefault(_NUMBER.sub(".*", module_of(name)), []).append(error)
    for module, errors in sorted(found.items()):
        yield module, str(len(errors)), f"{median(errors):.2g} ({max(errors):.2g})"


def _farthest(record: ExportRecord) -> str:
    errors = record.errors.tensors
    names = sorted(errors, key=lambda name: (-errors[name], name))[:_WORST]
    return ", ".join(f"{name} {errors[name]:.2g}" for name in names)
