"""All models of a run on one page: which is better on what, and what cannot be told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from shardmerge.base.text import human_bytes, plural
from shardmerge.benchmark.agreement import Agreement
from shardmerge.benchmark.comparison_rows import MARKS, Difference, Scores
from shardmerge.benchmark.comparison_text import (
    ABOUT_AGREEMENT,
    AGREEMENTS,
    DIFFERENCES,
    LEGEND,
    agreement_row,
    difference_row,
    groups,
    score_grid,
)
from shardmerge.plan.plan import Plan
from shardmerge.recipe.naming import folder_names
from shardmerge.report.html import Marked, heading, html_table, page, paragraph

_KINDS = {"better": "good", "worse": "bad"}


def compare_page(plan: Plan, scores: Scores) -> str:
    """Return the page.

    Args:
        plan: What is built of what.
        scores: Of all models, with comparisons.
    """
    asked = [one for one in scores.comparisons if one.headline]
    parts = [
        *_verdicts(plan, asked),
        *(paragraph(note, "bad") for note in scores.small),
        heading("Scores"),
        _grid(scores, None),
        *(
            part
            for group in groups(scores)
            for part in (heading(f"In {group}"), _grid(scores, group))
        ),
        paragraph(LEGEND, "note"),
        *(paragraph(f"[{i}] {note}", "note") for i, note in enumerate(scores.footnotes, 1)),
        *([heading("Differences"), difference_table(asked)] if asked else []),
        *(paragraph(note, "note") for note in scores.notes),
        *agreement_parts(scores.agreements),
        heading("Models"),
        html_table(("model", "size", "compared with", "more of it"), _models(plan, scores), (1,)),
        heading("Warnings on the recipes"),
        *(paragraph(warning, "bad") for warning in plan.warnings),
        *([] if plan.warnings else [paragraph("There are none.")]),
    ]
    return page("Comparison of all models", parts)


def difference_table(found: Iterable[Difference]) -> str:
    """Return comparisons as a table, its verdicts in their colours."""
    rows = [
        [*difference_row(one)[:-1], Marked(one.told, _KINDS.get(one.verdict, ""))] for one in found
    ]
    return html_table(DIFFERENCES, rows, (3, 4, 5))


def agreement_parts(found: Sequence[Agreement]) -> Iterator[str]:
    """Yield a section on how answers agree with those of parents, nothing if none are stored."""
    if found:
        yield heading("Agreement with parents")
        yield html_table(AGREEMENTS, map(agreement_row, found), (3, 4, 5, 6))
        yield paragraph(ABOUT_AGREEMENT, "note")


def _verdicts(plan: Plan, asked: Sequence[Difference]) -> Iterator[str]:
    """Yield a sentence on each model that is built."""
    if not asked:
        yield paragraph("No two models were measured on the same task.", "note")
    for name in plan.loadable:
        for text, kind in comparisons_in_words(asked, name):
            yield paragraph(f"{name}: {text}.", kind)


def comparisons_in_words(asked: Sequence[Difference], name: str) -> Iterator[tuple[str, str]]:
    """Yield what is said of a model beside each that it is compared with, and of what kind it is.

    Args:
        asked: Comparisons of what was asked for.
        name: The model's label.
    """
    own = [one for one in asked if one.model == name]
    for reference in dict.fromkeys(one.reference for one in own):
        found = [one for one in own if one.reference == reference]
        told = [
            f"{words} on {', '.join(labels)}"
            for verdict, words in (
                ("better", f"better than {reference}"),
                ("worse", f"worse than {reference}"),
                ("differs", f"different from {reference}"),
                ("unclear", "no clear difference"),
                ("untested", "not compared"),
            )
            if (labels := [one.label for one in found if one.verdict == verdict])
        ]
        verdicts = {one.verdict for one in found}
        kind = "bad" if "worse" in verdicts else "good" if "better" in verdicts else "note"
        yield "; ".join(told), kind


def _grid(scores: Scores, group: str | None) -> str:
    cells = [c for c in scores.cells if (c.headline if group is None else c.part_of == group)]
    header, rows = score_grid(scores, cells)
    marked = [[row[0], *map(_coloured, row[1:])] for row in rows]
    return html_table(header, marked, range(1, len(header)))


def _coloured(text: str) -> Marked:
    kinds = (kind for verdict, kind in _KINDS.items() if text.endswith(MARKS[verdict]))
    return Marked(text, next(kinds, ""))


def _models(plan: Plan, scores: Scores) -> Iterator[Sequence[str | Marked]]:
    sizes = {name: build.bytes_written for name, build in plan.models.items()}
    labels = folder_names(plan.sources, plan.models)
    sizes |= {labels[key]: source.size for key, source in plan.sources.items()}
    for model in scores.models:
        others = dict.fromkeys(one.reference for one in scores.comparisons if one.model == model)
        size = human_bytes(sizes[model]) if model in sizes else "-"
        more: str | Marked = "a source"
        if model in plan.models:
            shards = plural(len(plan.models[model].shards), "shard")
            more = Marked(f"summary ({shards})", file=f"../{model}/report/summary.html")
        yield model, size, ", ".join(others) or "-", more
