"""A model on one page: whether it is right, what it is made of, how good it is, where it lies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from shardmerge.algebra.call_terms import declared
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.text import human_bytes, plural
from shardmerge.benchmark.comparison_rows import Scores
from shardmerge.plan.description import BuildDescription, load_description
from shardmerge.plan.plan import Plan
from shardmerge.plan.records import VerifyRecord
from shardmerge.recipe.naming import short_public_names, shortener
from shardmerge.report.coefficients import coefficients
from shardmerge.report.compare_page import agreement_parts, difference_table
from shardmerge.report.export_errors import exports_in_summary
from shardmerge.report.html import heading, html_table, page, paragraph
from shardmerge.report.interference import COSINE, Interference
from shardmerge.report.interference_words import facts, warnings
from shardmerge.report.parents import parents
from shardmerge.report.summary import cells_of, summarize
from shardmerge.report.summary_facts import Findings, Loaded

_NOTHING = "-"
_INTERVALS = "Brackets: 95 % interval, for the choice of questions or passages."
_ABOUT_DISTANCES = (
    "A distance is the norm of the difference over the norm of the parent's layer. The plots "
    "beside this page show every layer."
)
_ABOUT_PAIRS = "Unrelated task vectors have a cosine of 0 and half of their elements of one sign."


def summary_page(plan: Plan, name: str, findings: Findings, folder: str) -> str:
    """Return the page of one build.

    Args:
        plan: Its builds' descriptions lie where ``planning`` keeps them.
        name: Of the build.
        findings: What jobs found of it so far; the page says what is missing.
        folder: Where its results lie.
    """
    found = load_description(plan.builds[name].digest)
    shorten = shortener(short_public_names(found.sources))
    lines = sorted(summarize(coefficients(found.coefficients), shorten), key=lambda line: line.rest)
    parts = [
        *_verdict(findings, found),
        heading("What it is"),
        html_table((), _facts(found)),
        heading("What its tensors are made of"),
        html_table(("layers", "modules", "value"), cells_of(lines)),
        *([] if found.checkpoint else _scores(plan, findings, found)),
        *_interference(findings.statistics),
        *exports_in_summary(findings.exports),
        heading("Warnings on the recipe"),
        *(paragraph(warning, "bad") for warning in plan.warnings),
        *([] if plan.warnings else [paragraph("There are none.")]),
        heading("Where its files lie"),
        html_table((), _places(folder, findings)),
    ]
    return page(name, parts)


def _interference(found: Interference | None) -> Iterator[str]:
    rows = facts(found) if found else []
    if not (found and rows):
        return
    yield heading("Task vectors and parents")
    yield html_table(("what", "of", "lowest and highest of all layers"), rows)
    yield from (paragraph(warning, "bad") for warning in warnings(found))
    about = [_ABOUT_PAIRS] if found.of(COSINE) else []
    yield paragraph(" ".join([*about, _ABOUT_DISTANCES]), "note")


def _verdict(findings: Findings, found: BuildDescription) -> Iterator[str]:
    yield from _verified(findings.verified)
    if found.checkpoint:
        yield paragraph(
            "A checkpoint that was merged by the names of its tensors. transformers does not load "
            "it, so that nothing was tried but to open its files and to verify every tensor.",
            "note",
        )
    else:
        yield from _loaded(findings.loaded)


def _scores(plan: Plan, findings: Findings, found: BuildDescription) -> Iterator[str]:
    yield heading("Benchmarks")
    yield from _benchmarks(findings.scores, found.name, parents(plan, found))


def _verified(found: VerifyRecord | None) -> Iterator[str]:
    if found is None:
        yield paragraph("Not verified yet: the target `models` does it.", "bad")
        return
    ways = [
        (found.copies, "compared bit by bit with the source that they are copies of"),
        (found.recomputed_independently, "recomputed in float64 by independent code"),
        (found.recomputed_by_engine_steps, "recomputed by the steps of the engine"),
        (found.verified_by_probes, "verified by products with random vectors"),
    ]
    told = "; ".join(f"{plural(count, 'tensor')} {how}" for count, how in ways if count)
    yield paragraph(
        f"Verified: {plural(found.tensors, 'tensor')} in {plural(found.shards, 'shard')} are as "
        "planned, and all their bytes are as they were written"
        + (f". A sample of {plural(found.elements, 'element')}: {told}." if told else "."),
        "good",
    )
    if sampled := found.sources.get("sampled", 0):
        whole = found.sources.get("hashed", 0)
        yield paragraph(
            f"{plural(whole, 'source file')} known by all bytes, {sampled:,} by a sample "
            "(`sources_check: full` reads them whole).",
            "note",
        )
    limits = [
        (len(found.not_sampled), "tensor", "not recomputed"),
        (found.undecided, "element", "recomputed without a bound to compare with"),
        (found.nonfinite, "element", "infinite or NaN"),
    ]
    for count, what, how in limits:
        if count:
            yield paragraph(f"{plural(count, what)} {how}.", "bad")


def _loaded(found: Loaded | None) -> Iterator[str]:
    if found is None:
        yield paragraph("Not loaded by transformers yet: the target `all` does it.", "bad")
        return
    parameters = f"{found.architecture}, {plural(found.parameters, 'parameter')}"
    if found.loaded != "weights":
        yield paragraph(
            f"transformers knows its architecture ({parameters}) and finds every parameter. The "
            "weights were not loaded, since the model is too large for that here; it generated "
            "nothing.",
            "bad",
        )
    else:
        yield paragraph(f"Loaded by transformers: {parameters}.", "good")
        yield _generated(found)
    if isinstance(found.tokenizer, int):
        yield paragraph(f"Its tokenizer was loaded: {plural(found.tokenizer, 'token')}.", "good")
    else:
        yield paragraph(f"Tokenizer: {found.tokenizer}.", "bad")
    if found.unused:
        first = found.unused[0]
        yield paragraph(
            f"{plural(len(found.unused), 'tensor')} that transformers does not use: {first}"
            + (", ..." if len(found.unused) > 1 else ""),
            "note",
        )


def _generated(found: Loaded) -> str:
    if not found.finite:
        return paragraph("What it computes is infinite or NaN.", "bad")
    if not found.generated:
        return paragraph("It is of a kind that generates no text.", "note")
    told = f"Generated {plural(len(found.generated), 'token')}, all finite."
    if found.prompt is not None and found.text is not None:
        told += f" After “{found.prompt}” it goes on: “{found.text}”"
    return paragraph(told, "good")


def _facts(found: BuildDescription) -> Iterator[tuple[str, str]]:
    tensors = [row for shard in found.shards for row in shard.tensors.values()]
    size = human_bytes(sum(tensor_bytes(code, shape) for code, shape in tensors))
    values = sum(math.prod(shape) for _, shape in tensors)
    yield "size", f"{size}, {values:,} values in {plural(len(tensors), 'tensor')}"
    yield "type", found.dtype or "as in the sources"
    yield "shards", str(len(found.shards))
    names = short_public_names(found.sources)
    yield "made from", ", ".join(names.values())
    for method in dict.fromkeys(stage.method for stage in found.stages):
        known = declared(method)
        yield "method", f"{known.title} ({method}), {known.reference}" if known else method
    yield "numerics", found.numerics


def _benchmarks(scores: Scores | None, name: str, sources: Sequence[str]) -> Iterator[str]:
    if scores is None or not scores.cells:
        yield paragraph("Nothing is measured: `benchmark.tasks` names what to measure.", "note")
        return
    rows: dict[str, dict[str, str]] = {}
    for score in sorted(scores.cells, key=lambda score: not score.headline):
        rows.setdefault(score.heading, {})[score.model] = score.text
    models = scores.models
    grid = ([key, *(row.get(model, _NOTHING) for model in models)] for key, row in rows.items())
    yield html_table(("task", *models), grid, range(1, 1 + len(models)))
    yield paragraph(_INTERVALS, "note")
    for number, note in enumerate(scores.footnotes, 1):
        yield paragraph(f"[{number}] {note}", "note")
    if name in models:
        yield from _differences(scores, name, [source for source in sources if source in models])
    else:
        yield paragraph("The model itself was not measured.", "bad")


def _differences(scores: Scores, name: str, sources: Sequence[str]) -> Iterator[str]:
    if not sources:
        yield paragraph("None of the models that it is made from was measured.", "note")
        return
    found = [
        one for one in scores.comparisons if (one.model, one.reference in sources) == (name, True)
    ]
    if not found:
        yield paragraph("No task was measured of it and of a model that it is made from.", "note")
        return
    yield heading("Differences to the models that it is made from")
    for note in scores.small:
        yield paragraph(note, "bad")
    yield difference_table(found)
    for note in scores.notes:
        yield paragraph(note, "note")
    yield from agreement_parts(scores.agreements)


def _places(folder: str, findings: Findings) -> Iterable[tuple[str, str]]:
    yield "model", f"{folder}/model"
    yield "what every file must hash to", f"{folder}/model/SHA256SUMS"
    yield "what it was made from", f"{folder}/model/provenance.json"
    if findings.verified:
        yield "what was verified", f"{folder}/verify.json"
    if findings.loaded:
        yield "what transformers found", f"{folder}/loaded.json"
    if findings.scores:
        yield "benchmarks", f"{folder}/benchmarks/table.md, table.csv, table.json"
    yield "plots and tables", f"{folder}/report"
