"""What a loaded model says of tokens: logits window by window, likelihoods of answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.benchmark.probe_text import ProbeText, TextWindow, windows

if TYPE_CHECKING:
    import torch
    from lm_eval.api.model import LM

#: Rows of logits that are computed with at once, in float64.
_ROWS = 64


def window_logits(
    model: LM, text: ProbeText, context: int, stride: int
) -> Iterator[tuple[TextWindow, torch.Tensor]]:
    """Yield each window that predicts what counts, with the logits of the tokens it predicts.

    Every window begins with the token that begins a text, which many models lean on.

    Args:
        model: From ``loading.language_model``, with transformers.
        text: As its tokenizer sees it.
        context, stride: As of ``probe_text.windows``.

    Yields:
        A window, and logits of shape (tokens, vocabulary) as the model computes them, on the CPU.
    """
    for window in filter(text.asks, windows(len(text.tokens), context, stride)):
        read = [model.prefix_token_id, *text.tokens[window.start : window.end - 1]]
        count = window.end - window.begin
        yield window, _run(model, read, count, use_cache=False).logits[0, -count:].cpu()


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities in float64: of equal logits they are equal to the last bit."""
    return logits.double().log_softmax(-1)


def row_blocks(count: int) -> Iterator[slice]:
    """Yield the rows of a window in blocks, so that memory does not grow with windows."""
    return (slice(i, min(count, i + _ROWS)) for i in range(0, count, _ROWS))


def answer_likelihoods(
    model: LM, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """Return the log-probability of each answer, and whether it is the likeliest token by token.

    The prompt is read once; what the model keeps of it serves all answers.

    Args:
        model: From ``loading.language_model``, with transformers.
        prompt: Tokens, without the one that begins a text.
        answers: Tokens of each.
    """
    read = [model.prefix_token_id, *prompt]
    whole = _run(model, read, 1, use_cache=True)
    kept, first = getattr(whole, "past_key_values", None), whole.logits[0, -1:].cpu()
    found = []
    for answer in answers:
        rows = [first]
        if len(answer) > 1 and kept is not None:
            told = {"past_key_values": copy.deepcopy(kept), "use_cache": True}
            rows.append(_run(model, answer[:-1], len(answer) - 1, **told).logits[0].cpu())
        elif len(answer) > 1:  # some models keep nothing
            told = _run(model, [*read, *answer[:-1]], len(answer), use_cache=False)
            rows = [told.logits[0, -len(answer) :].cpu()]
        found.append(_likelihood(rows, answer))
    return found


def _likelihood(rows: list[torch.Tensor], answer: Sequence[int]) -> tuple[float, bool]:
    import torch

    known = log_softmax(torch.cat(rows))
    wanted = torch.tensor(answer)
    value = known.gather(1, wanted[:, None]).sum().item()
    return value, bool((known.argmax(-1) == wanted).all())


def _run(model: LM, tokens: Sequence[int], last: int, **told: Any) -> Any:
    """Return a model's output for tokens; of logits the last rows alone, where it can."""
    import torch

    network = model.model
    if "logits_to_keep" in signature(network.forward).parameters:
        told["logits_to_keep"] = last
    with torch.inference_mode():
        found = network(input_ids=torch.tensor([list(tokens)], device=model.device), **told)
    if not torch.isfinite(found.logits).all():
        raise UserError("computes infinite or NaN values")
    return found
