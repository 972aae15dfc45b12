"""What is odd in a recipe but allowed: told with its reason, and silenced by the check's name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

#: Name of each check, and what it looks for.
CHECKS = {
    "rope-blend": (
        "Query or key projections blended across models whose rotary position embeddings differ "
        "in base frequency or scaling: rotations by different frequencies do not add, so that "
        "distances in the text are wrong for all of them."
    ),
    "norms-summed": (
        "Scales of norms to which differences of models are added: a scale multiplies, so changes "
        "of several models would multiply too (`norm_merge: geometric`)."
    ),
    "tokenizer-blend": (
        "Input or output embeddings blended across models whose tokenizers differ: one row may "
        "stand for different tokens. Tokens are compared where all models are in folders; of "
        "models on the Hub only whether the tokenizer's files differ is known beforehand."
    ),
    "fp16-range": (
        "Sources of a wider range saved as float16: what exceeds 65504 fails the job, what is "
        "below 6e-8 becomes 0."
    ),
    "weights-sum": (
        "Coefficients of a sum of models that do not sum to 1: the result is scaled. Not told "
        "where a `passthrough` scales on purpose."
    ),
    "layer-period": (
        "Slices after which every so many layers no longer come the kind that config.json, or the "
        "architecture, says by a period and cannot say by a list (`attn_layer_period` and the "
        "like): layers are then taken for what they are not."
    ),
    "missing-tensor": (
        "Tensors that only some of the blended models have: a bias is merged from those alone; for "
        "an output embedding a tied model gives its input embedding, and the result is untied."
    ),
    "stale-quantisation": (
        "A model whose config.json says that its weights are quantised, although they are plain. "
        "The result's config.json says nothing of it."
    ),
    "unused-model": "A listed model that adds nothing to the result: its weights are 0 or cancel.",
    "ignored-key": (
        "A key that the recipe's language does not have at that place; mergekit passes over it too."
    ),
    "ignored-parameter": "A parameter that the merge method does not use.",
    "unmatched-filter": "A filter that matches no tensor, so that its value is not used.",
    "empty-slice": "A slice of no layers: the second number of a `layer_range` is not counted.",
    "renamed": "A name that cannot be a folder's, and what the model is called instead.",
    "norm-merge-unused": "`norm_merge: geometric` where no document is a `task_arithmetic`.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Args:
        check: Key of CHECKS.
        message: A sentence with the reason.
        where: File and line.
    """

    check: str
    message: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.check}]"


def unsilenced(findings: Iterable[Finding], silence: Collection[str]) -> tuple[str, ...]:
    """Return findings as text, each once, without those of the checks that are silenced."""
    return tuple(dict.fromkeys(str(f) for f in findings if f.check not in silence))
