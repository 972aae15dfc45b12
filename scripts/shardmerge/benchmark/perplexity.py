"""How well a model predicts a text: perplexity of its tokens, and bits for each byte."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shardmerge.base.digest import digest
from shardmerge.benchmark.probe_model import log_softmax, row_blocks, window_logits
from shardmerge.benchmark.probe_options import ProbeOptions
from shardmerge.benchmark.probe_result import ProbeFindings, passage_row
from shardmerge.benchmark.probe_text import ProbeText
from shardmerge.benchmark.resampling import Passages, ratio

if TYPE_CHECKING:
    import numpy
    import torch
    from lm_eval.api.model import LM
    from numpy.typing import NDArray


def measure_perplexity(model: LM, text: ProbeText, options: ProbeOptions) -> ProbeFindings:
    """Return the perplexity of a text's tokens, and bits for each of its bytes.

    Bits for each byte can be compared between models with different tokenizers, perplexities of
    tokens cannot.

    Args:
        model: From ``loading.language_model``, with transformers.
        text: As its tokenizer sees it.
        options: How windows lie.
    """
    import numpy

    context, stride = options.window(model.max_length)
    known = numpy.zeros(len(text.tokens))
    for window, logits in window_logits(model, text, context, stride):
        known[window.begin : window.end] = _true(logits, text.tokens[window.begin : window.end])
    passages = Passages(text.places, text.asked)
    sums, counts = passages.sums(known), passages.sizes()
    sizes = numpy.array([len(text.passages[i].encode()) for i in text.asked], dtype=float)
    lost, bits = ratio(-sums, counts), ratio(-sums / math.log(2), sizes)
    ones = numpy.ones(passages.count)
    found = ProbeFindings(better={"token_perplexity": False, "bits_per_byte": False})
    found.values["perplexity"] = {
        "token_perplexity": (
            math.exp(lost(ones)),
            passages.error(lambda weights: math.exp(lost(weights))),
        ),
        "bits_per_byte": (bits(ones), passages.error(bits)),
    }
    windows = f"{context} tokens, {stride} new ones"
    cut = digest(list(text.tokens))[:8]
    found.settings["perplexity"] = {
        "token_perplexity": {"windows": windows, "tokens": cut},
        "bits_per_byte": {"windows": windows},
    }
    for i, (lost_here, tokens, size) in zip(
        text.asked, zip(sums, counts, sizes, strict=True), strict=True
    ):
        passage = text.passages[i]
        parts = {
            "token_perplexity": [float(lost_here), float(tokens)],
            "bits_per_byte": [float(lost_here), float(size)],
        }
        found.rows.append(
            passage_row("perplexity", i, (passage, passage), [windows, passage], parts)
        )
    return found


def _true(logits: torch.Tensor, tokens: tuple[int, ...]) -> NDArray[numpy.float64]:
    """Return the log-probability of each token that came."""
    import torch

    wanted = torch.tensor(tokens)[:, None]
    parts = [log_softmax(logits[rows]).gather(1, wanted[rows]) for rows in row_blocks(len(tokens))]
    return torch.cat(parts)[:, 0].numpy()
