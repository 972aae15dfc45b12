"""Plots of what a model is made of: effective coefficients, norms of task vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shardmerge.base.text import plural
from shardmerge.recipe.naming import short_public_names, shortener
from shardmerge.report.canvas import message
from shardmerge.report.coefficients import Coefficients, Spread
from shardmerge.report.frame import Cell, Frame
from shardmerge.report.heatmap import Scale, draw_heatmap


def draw_coefficients(
    name: str, found: Coefficients, sources: Sequence[str], output: str | os.PathLike[str]
) -> None:
    """Draw the effective coefficients of a model, a panel for each source or task vector.

    Args:
        name: Of the model.
        found: Its coefficients.
        sources: References that are written by their short names.
        output: The file to write.
    """
    shorten = shortener(short_public_names(sources))
    panels = {shorten(term): found.of(term) for term in found.parts}
    means = [spread.mean for cells in panels.values() for spread in cells.values()]
    scale = Scale("RdBu", "coefficient", min(0.0, *means), max(1.0, *means))
    note = "White: not used."
    if any(spread.varies for cells in panels.values() for spread in cells.values()):
        note += f" {_experts(found.frame)}"
    draw_heatmap(output, f"{name}: what each tensor is made of", note, found.frame, panels, scale)


def draw_norms(
    name: str,
    frame: Frame,
    norms: Mapping[str, Mapping[Cell, Spread]],
    sources: Sequence[str],
    output: str | os.PathLike[str],
    nothing: str,
) -> None:
    """Draw the relative norms of a model's task vectors, a panel for each.

    Args:
        name: Of the model.
        frame: Its rows and columns.
        norms: Label of a task vector to the norms of its cells.
        sources: References that are written by their short names.
        output: The file to write.
        nothing: What to say if there is none.
    """
    title = f"{name}: how far each fine-tuned tensor is from its base"
    if not norms:
        message(output, title, nothing)
        return
    shorten = shortener(short_public_names(sources))
    panels = {shorten(label): cells for label, cells in norms.items()}
    values = [spread.mean for cells in panels.values() for spread in cells.values()]
    note = "Norm of the task vector over the norm of its base. White: not in this model."
    if any(spread.varies for cells in panels.values() for spread in cells.values()):
        note += f" {_experts(frame)}"
    scale = Scale("viridis_r", "relative norm", 0.0, max(values) or 1.0)
    draw_heatmap(output, title, note, frame, panels, scale)


def _experts(frame: Frame) -> str:
    return (
        f"Dots: the {plural(frame.experts, 'expert')} of a layer differ; the colour is their mean."
    )
