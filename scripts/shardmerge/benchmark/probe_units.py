"""What a value of a table is from: questions, passages of a text, haystacks with a needle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_UNITS = {"perplexity": "passage", "kl": "passage", "needle": "haystack"}
_BY_LM_EVAL = "lm_eval"


def unit_of(task: str, settings: Mapping[str, Any]) -> str:
    """Return what a task's samples are, in the singular.

    Args:
        task: A task, a probe or a part of one, such as ``kl_SOURCE``.
        settings: How it was measured; without any, its name alone tells.
    """
    if settings.get(_BY_LM_EVAL):
        return "question"
    return _UNITS.get(task.partition("_")[0], "question")
