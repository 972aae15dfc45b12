"""What the report opens on: in a few words for each result, whether it is right and how good."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from shardmerge.base.text import plural
from shardmerge.benchmark.comparison_rows import Scores
from shardmerge.plan.paths import CHECKSUMS, Paths
from shardmerge.plan.plan import Plan
from shardmerge.plan.records import VerifyRecord
from shardmerge.report.compare_page import comparisons_in_words
from shardmerge.report.summary_facts import Loaded, read_findings


def opening(plan: Plan, paths: Paths) -> dict[str, list[str]]:
    """Return sentences on each model and adapter, as reStructuredText.

    Args:
        plan: What is built.
        paths: Of the results, which may lack anything.

    Raises:
        UserError: If a file that is there is damaged.
    """
    told = {name: list(_of_model(plan, name, paths)) for name in plan.models}
    told |= {name: [_of_adapter(name, paths)] for name in plan.adapters}
    return {name: [_sentence(line) for line in lines] for name, lines in told.items()}


def _of_model(plan: Plan, name: str, paths: Paths) -> Iterator[str]:
    verified, loaded = (paths.build(name, f"{file}.json") for file in ("verify", "loaded"))
    scores = paths.measurement("table.json")
    found = read_findings(plan.builds[name].digest, verified, loaded, scores)
    yield _verified(found.verified)
    if plan.builds[name].checkpoint:
        yield "a checkpoint that transformers does not load"
        return
    yield _loaded(found.loaded)
    yield from _compared(found.scores, name)


def _of_adapter(name: str, paths: Paths) -> str:
    whole = os.path.lexists(paths.adapter_file(name, CHECKSUMS))
    return "a LoRA adapter, checked" if whole else "a LoRA adapter that is not finished yet"


def _verified(found: VerifyRecord | None) -> str:
    if found is None:
        return "not verified yet"
    return f"verified: {plural(found.tensors, 'tensor')} in {plural(found.shards, 'shard')}"


def _loaded(found: Loaded | None) -> str:
    if found is None:
        return "not loaded by transformers yet"
    if found.loaded != "weights":
        return f"too large to be loaded here; transformers knows {found.architecture}"
    if not found.finite:
        return "loaded by transformers, but what it computes is infinite or NaN"
    generates = ", and generates" if found.generated else ""
    return f"loaded by transformers{generates}"


def _compared(scores: Scores | None, name: str) -> Iterator[str]:
    asked = [one for one in scores.comparisons if one.headline] if scores else []
    yield from (text for text, _ in comparisons_in_words(asked, name))


def _sentence(text: str) -> str:
    """Return a text as a sentence, with nothing in it that reStructuredText reads as a sign."""
    escaped = re.sub(r"([\\*`_|])", r"\\\1", text)
    return f"{escaped[0].upper()}{escaped[1:]}."
