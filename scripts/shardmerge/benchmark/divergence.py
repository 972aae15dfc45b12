"""How far a model's predictions are from another's: Kullback-Leibler divergence, token by token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.benchmark.probe_model import log_softmax, row_blocks, window_logits
from shardmerge.benchmark.probe_result import ProbeFindings, passage_row
from shardmerge.benchmark.probe_text import (
    ProbeText,
    TextWindow,
    vocabulary_difference,
    vocabulary_of,
)
from shardmerge.benchmark.reference_logits import KeptLogits, open_reference
from shardmerge.benchmark.resampling import Passages, ratio

if TYPE_CHECKING:
    import numpy
    import torch
    from lm_eval.api.model import LM
    from numpy.typing import NDArray

    Numbers = NDArray[numpy.float64]

_QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Divergence:
    """How a model's predictions differ from a reference's, for each token of a text.

    Args:
        kl: Kullback-Leibler divergence of the model from the reference, in nats.
        same: 1 where both find the same token likeliest, else 0.
        change: Log-probability of the token that came, less the reference's.
    """

    kl: Numbers
    same: Numbers
    change: Numbers

    @classmethod
    def of(cls, tokens: int) -> Divergence:
        """Return room for so many tokens."""
        import numpy

        return cls(numpy.zeros(tokens), numpy.zeros(tokens), numpy.zeros(tokens))

    def fill(
        self, window: TextWindow, own: torch.Tensor, reference: torch.Tensor, tokens: Sequence[int]
    ) -> None:
        """Take the logits of a window's tokens.

        ``sum(p * (log p - log q))`` with the reference's ``p`` and the model's ``q``, over the
        tokens that both know.

        Args:
            window: Where they are.
            own, reference: Shape (tokens, vocabulary).
            tokens: That came, in this window.
        """
        import torch

        size = min(own.shape[-1], reference.shape[-1])
        for rows in row_blocks(len(tokens)):
            q, p = log_softmax(own[rows, :size]), log_softmax(reference[rows, :size])
            came = torch.tensor(tokens[rows])[:, None]
            apart = torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1)
            into = slice(window.begin + rows.start, window.begin + rows.stop)
            # a sum of rounded parts may be below 0 by the last digits
            self.kl[into] = apart.clamp_min(0.0).numpy()
            self.same[into] = (p.argmax(-1) == q.argmax(-1)).numpy()
            self.change[into] = (q.gather(1, came) - p.gather(1, came))[:, 0].numpy()

    def metrics(self, passages: Passages) -> dict[str, tuple[float, float | None]]:
        """Return what is told of all tokens, with standard errors.

        ``gain`` and ``loss`` are the parts of the mean change of the log-probability of the token
        that came: where it rose, and where it fell.
        """
        import numpy

        means = {
            "mean": self.kl,
            "same_top": self.same,
            "gain": numpy.maximum(self.change, 0),
            "loss": numpy.maximum(-self.change, 0),
        }
        sizes, ones = passages.sizes(), numpy.ones(passages.count)
        found = {}
        for name, values in means.items():
            mean = ratio(passages.sums(values), sizes)
            found[name] = mean(ones), passages.error(mean)
        found |= {name: passages.quantile(self.kl, q) for name, q in _QUANTILES.items()}
        order = ("mean", *_QUANTILES, "same_top", "gain", "loss")
        return {name: found[name] for name in order}


def measure_divergence(
    model: LM, name: str, text: ProbeText, references: Sequence[str | os.PathLike[str]]
) -> ProbeFindings:
    """Return how far a model is from others.

    Args:
        model: From ``loading.language_model``, with transformers.
        name: What it is called in results.
        text: As its tokenizer sees it.
        references: What ``reference_logits.keep_logits`` wrote of the others.
    """
    found, done = ProbeFindings(), {}
    with ExitStack() as files:
        others: dict[tuple[int, int], list[KeptLogits]] = {}
        for path in references:
            other = files.enter_context(open_reference(path))
            if reason := _apart(model, text, other):
                found.notes.append(f"kl of {name} from {other.name} was not measured: {reason}.")
            else:
                others.setdefault((other.context, other.stride), []).append(other)
        for windows, group in others.items():
            done |= _compared(model, text, windows, group)
    passages = Passages(text.places, text.asked)
    for other, apart in done.items():
        task = f"kl_{other}"
        found.parts.append(task)
        found.values[task] = apart.metrics(passages)
        found.rows += _rows(task, text, apart, passages)
    if done:
        found.values = {"kl": {"mean": _mean(list(done.values()), passages)}} | found.values
    return found


def _compared(
    model: LM, text: ProbeText, windows: tuple[int, int], others: Sequence[KeptLogits]
) -> dict[str, Divergence]:
    found = {other.name: Divergence.of(len(text.tokens)) for other in others}
    for window, own in window_logits(model, text, *windows):
        for other in others:
            rows = slice(window.begin, window.end)
            found[other.name].fill(window, own, other.rows[rows], text.tokens[rows])
    return found


def _apart(model: LM, text: ProbeText, other: KeptLogits) -> str | None:
    """Return in words why a model cannot be compared with another, None if it can."""
    if other.context > model.max_length:
        return (
            f"windows of {other.context:,} tokens are longer than the {model.max_length:,} that "
            f"it declares; write `context: {model.max_length}`"
        )
    own = vocabulary_of(model.tokenizer, len(other.vocabulary))
    return vocabulary_difference(own, other.vocabulary, text.tokens == other.tokens)


def _mean(found: Sequence[Divergence], passages: Passages) -> tuple[float, float | None]:
    """Return the mean divergence from all references."""
    import numpy

    whole = sum(passages.sums(one.kl) for one in found) / len(found)
    mean = ratio(whole, passages.sizes())
    return mean(numpy.ones(passages.count)), passages.error(mean)


def _rows(task: str, text: ProbeText, found: Divergence, passages: Passages) -> list[dict]:
    sums, sizes = passages.sums(found.kl), passages.sizes()
    return [
        passage_row(task, i, (text.passages[i],) * 2, text.passages[i], {}, kl=[float(s), float(n)])
        for i, s, n in zip(text.asked, sums, sizes, strict=True)
    ]
