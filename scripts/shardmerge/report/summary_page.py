"""A model on one page: whether it is right, what it is made of, how good it is, where it lies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from shardmerge.algebra.call_terms import declared
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.text import human_bytes, plural
from shardmerge.plan.description import BuildDescription, load_description
from shardmerge.plan.plan import Plan
from shardmerge.recipe.naming import folder_names, short_public_names, shortener
from shardmerge.report.coefficients import coefficients
from shardmerge.report.html import heading, html_table, page, paragraph
from shardmerge.report.interference import COSINE, Interference
from shardmerge.report.interference_words import facts, warnings
from shardmerge.report.summary import cells_of, summarize
from shardmerge.report.summary_facts import Findings, Loaded, Score, Scores, Verified

#: Half of a 95 % interval, in standard errors.
_HALF = 1.96
_NOTHING = "-"
_INTERVALS = (
    "± is half of a 95 % interval: 1.96 standard errors of the choice of questions. A standard "
    "error of 0, as where all answers are right, does not mean certainty."
)
_DIFFERENCES = (
    "The interval of a difference is 1.96 times the root of the sum of both squared standard "
    "errors, as if each model had answered questions of its own. Both answered the same, so that "
    "it is rather too wide. “better” and “worse” stand where it does not reach zero."
)
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
        *_verdict(findings),
        heading("What it is"),
        html_table((), _facts(found)),
        heading("What its tensors are made of"),
        html_table(("layers", "modules", "value"), cells_of(lines)),
        heading("Benchmarks"),
        *_benchmarks(findings.scores, name, _parents(plan, found)),
        *_interference(findings.statistics),
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


def _verdict(findings: Findings) -> Iterator[str]:
    yield from _verified(findings.verified)
    yield from _loaded(findings.loaded)


def _verified(found: Verified | None) -> Iterator[str]:
    if found is None:
        yield paragraph("Not verified yet: the target `models` does it.", "bad")
        return
    ways = [
        (found.copies, "compared bit by bit with the source that they are copies of"),
        (found.recomputed_independently, "recomputed in float64 by independent code"),
        (found.recomputed_by_engine_steps, "recomputed by the steps of the engine"),
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


def _parents(plan: Plan, found: BuildDescription) -> list[str]:
    """Return what the build's sources are called in tables of benchmarks."""
    labels = folder_names(plan.sources, plan.builds)
    return [labels[key] for key in found.sources if key in labels]


def _benchmarks(scores: Scores | None, name: str, parents: Sequence[str]) -> Iterator[str]:
    if scores is None or not scores.cells:
        yield paragraph("Nothing is measured: `benchmark.tasks` names what to measure.", "note")
        return
    rows: dict[str, dict[str, Score]] = {}
    for score in sorted(scores.cells, key=lambda score: not score.headline):
        rows.setdefault(score.label, {})[score.model] = score
    models = scores.models
    grid = ([_task(row), *(_value(row.get(model)) for model in models)] for row in rows.values())
    yield html_table(("task", *models), grid, range(1, 1 + len(models)))
    yield paragraph(_INTERVALS, "note")
    for number, note in enumerate(scores.footnotes, 1):
        yield paragraph(f"[{number}] {note}", "note")
    own = [row for row in rows.values() if name in row]
    if own:
        yield from _differences(own, name, [p for p in parents if p in models])
    else:
        yield paragraph("The model itself was not measured.", "bad")


def _differences(
    rows: Iterable[Mapping[str, Score]], name: str, parents: Sequence[str]
) -> Iterator[str]:
    if not parents:
        yield paragraph("None of the models that it is made from was measured.", "note")
        return
    yield heading("Differences to the models that it is made from")
    grid = ([_task(row), *(_difference(row[name], row.get(p)) for p in parents)] for row in rows)
    header = ("task", *(f"minus {parent}" for parent in parents))
    yield html_table(header, grid, range(1, len(header)))
    yield paragraph(_DIFFERENCES, "note")


def _task(row: Mapping[str, Score]) -> str:
    first = next(iter(row.values()))
    return first.label + {True: " ↑", False: " ↓", None: ""}[first.higher_is_better]


def _value(score: Score | None) -> str:
    if score is None:
        return _NOTHING
    notes = "".join(f" [{note}]" for note in score.notes)
    return _with_interval(score.value, score.error) + notes


def _with_interval(value: float, error: float | None, sign: str = "") -> str:
    digits = 3 if abs(value) < 10 else 2
    half = "" if error is None else f" ± {_HALF * error:.{digits}f}"
    return f"{value:{sign}.{digits}f}{half}"


def _difference(own: Score, other: Score | None) -> str:
    """Return a difference with its interval and what it means, nothing if it would mislead."""
    if other is None:
        return _NOTHING
    if own.settings != other.settings:
        return "measured differently"
    difference = own.value - other.value
    if not math.isfinite(difference):
        return _NOTHING
    if own.error is None or other.error is None:
        return _with_interval(difference, None, "+")
    error = math.hypot(own.error, other.error)
    text = _with_interval(difference, error, "+")
    if own.higher_is_better is None or abs(difference) <= _HALF * error:
        return text
    return f"{text} {'better' if (difference > 0) == own.higher_is_better else 'worse'}"


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
