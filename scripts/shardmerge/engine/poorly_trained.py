"""Tokens that a model was hardly trained on, from its embeddings alone.

Land and Bartolo 2024, "Fishing for Magikarp: Automatically Detecting Under-trained Tokens in Large
Language Models", https://arxiv.org/abs/2405.05417.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

#: Share of the rows that are taken for hardly trained, and the least similarity that tells so.
_SHARE, _SIMILAR = 0.01, 0.5


def poorly_trained(
    tables: Iterable[torch.Tensor], unused: Sequence[int], *, tied: bool
) -> set[int]:
    """Return the rows of tokens that a model was hardly trained on.

    Those of the input embedding that are shortest, if it is not tied, and in each table those that
    are most like the mean of the unused rows.

    Args:
        tables: Input embedding and output embedding, or both as one; float32 [rows, width].
        unused: Rows that no text reaches; they are among those that are returned.
        tied: Whether the two are one.
    """
    found = set(unused)
    for number, table in enumerate(tables):
        if number == 0 and not tied:
            norms = table.norm(dim=1)
            found.update(torch.where(norms < torch.quantile(norms, _SHARE))[0].tolist())
        if unused:
            mean = table[list(unused)].mean(dim=0, keepdim=True)
            alike = torch.nn.functional.cosine_similarity(table, mean, dim=1)
            least = max(float(torch.quantile(alike, 1 - _SHARE)), _SIMILAR)
            found.update(torch.where(alike > least)[0].tolist())
    return found
