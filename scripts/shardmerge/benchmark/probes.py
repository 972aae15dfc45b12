"""The probes of a benchmark job, each as a function of the loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shardmerge.benchmark.divergence import measure_divergence
from shardmerge.benchmark.harness import Evaluation
from shardmerge.benchmark.needle import measure_needles
from shardmerge.benchmark.options import EvalOptions
from shardmerge.benchmark.perplexity import measure_perplexity
from shardmerge.benchmark.probe_options import ProbeOptions
from shardmerge.benchmark.probe_result import ProbeFindings, evaluation
from shardmerge.benchmark.probe_text import load_text, tokenized

if TYPE_CHECKING:
    from lm_eval.api.model import LM

Probe = Callable[["LM"], Evaluation]


def probes_of(
    names: Sequence[str],
    name: str,
    options: Mapping[str, EvalOptions],
    asked: ProbeOptions,
    references: Sequence[Path],
) -> dict[str, Probe]:
    """Return probes by name.

    Args:
        names: Of the probes.
        name: What the model is called in results.
        options: How the model is loaded, and what of the text counts, by probe.
        asked: How it is probed.
        references: What ``reference_logits.keep_logits`` wrote of other models.
    """

    def probe(kind: str, model: LM) -> Evaluation:
        found = _findings(kind, model, name, asked, options[kind], references)
        return evaluation(model, name, kind, options[kind], found)

    return {kind: partial(probe, kind) for kind in names}


def _findings(
    kind: str,
    model: LM,
    name: str,
    asked: ProbeOptions,
    options: EvalOptions,
    references: Sequence[Path],
) -> ProbeFindings:
    text = load_text(asked.text, asked.characters)
    if kind == "needle":
        return measure_needles(model, text, asked, options)
    cut = tokenized(model.tokenizer, text, options)
    if kind == "kl":
        return measure_divergence(model, name, cut, references)
    return measure_perplexity(model, cut, asked)
