"""Findings: odd but allowed things in a recipe. A check's name silences its warnings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from shardmerge.base.text import plural

#: Name of each check, and what it looks for.
CHECKS = {
    "rope-blend": (
        "Query or key projections blended across models whose rotary position embeddings differ "
        "in base frequency or scaling: rotations by different frequencies do not add, so that "
        "distances in the text are wrong for all of them."
    ),
    "norms-summed": (
        "Scales of norms to which differences of models are added. A scale multiplies, so changes "
        "by several models should multiply too (`norm_merge: geometric`)."
    ),
    "tokenizer-blend": (
        "Input or output embeddings blended across models whose tokenizers differ: one row may "
        "stand for different tokens. Tokens are compared if all models are in folders. For models "
        "on the Hub only the hashes of the tokenizer's files are compared."
    ),
    "fp16-range": (
        "Sources of a wider range saved as float16. A value above 65504 fails the job, a value "
        "below 6e-8 becomes 0."
    ),
    "weights-sum": (
        "Coefficients of a sum of models that do not sum to 1, so that the result is scaled. There "
        "is no warning where a `passthrough` scales on purpose."
    ),
    "layer-period": (
        "Slices that break a period of layers. config.json or the architecture says that every "
        "n-th layer is of another kind (`attn_layer_period` and the like), and cannot say it by a "
        "list. Some layers of the result are then taken for the wrong kind."
    ),
    "missing-tensor": (
        "Tensors that only some of the blended models have. A bias is merged from those models "
        "alone. For a missing output embedding, a tied model's input embedding is taken, and the "
        "result is untied. Of checkpoints of any kind, tensors that a union merges from some of "
        "them, and those that are not in the result."
    ),
    "mtp-layers": (
        "Layers for multi-token prediction (behind the last layer, or `mtp.*`) that cannot just be "
        "merged: slices put them behind other layers, or only some models have them. Then those of "
        "the base are kept as they are; if it has none, they are left out."
    ),
    "module-folders": (
        "Folders of modules, such as `2_Dense` of a sentence-transformers model, that not all "
        "models have with the same tensors or settings. The base's are kept as they are; what only "
        "other models have is left out."
    ),
    "text-into-vision": (
        "A text model that is merged with the text decoder of a model that sees or hears. The "
        "result is what the base model is: with the other parts as that has them, or a text model "
        "without them (`docs/howto/vision.md`)."
    ),
    "quantised-source": (
        "A model whose weights are quantised (`docs/formats.md`): the result "
        "inherits what rounding has taken from them."
    ),
    "stale-quantisation": (
        "A model whose config.json says that its weights are quantised, although they are plain. "
        "The result's config.json says nothing of it."
    ),
    "remote-code": (
        "A model whose config.json names code of its own. Such code is never run, and not taken "
        "along."
    ),
    "left-out-weights": (
        "Files of weights in a folder or repository whose checkpoint is merged by names "
        "(`docs/howto/checkpoints.md`), and that are no part of it: variants such as `.fp16`, "
        "files in folders whose names have other characters than letters, digits and `_`."
    ),
    "equal-prompts": (
        "A mixture in which several experts have the same prompts, so that its router cannot tell "
        "them apart, or one that has the same positive and negative prompts. mergekit refuses the "
        "same prompts for all."
    ),
    "equal-experts": (
        "A mixture whose experts have all the same weights, without noise: it computes what one of "
        "them does, until it is trained."
    ),
    "expert-tokenizers": (
        "A mixture of models whose tokenizers differ. All experts get the base model's tokens, "
        "which stand for other texts in some of them."
    ),
    "few-shared-tokens": (
        "A model that gets another tokenizer (`approximate`) and has rows of its own for less than "
        "a quarter of the tokens. It needs training before it is of use."
    ),
    "unused-model": "A listed model that adds nothing: its weights are 0 or cancel each other.",
    "ignored-key": (
        "A key that the recipe's language does not have at that place. mergekit ignores it too."
    ),
    "ignored-parameter": "A parameter that the merge method does not use.",
    "clamped-parameter": (
        "A number beyond the bounds of its parameter, such as a `density` of 1.2, where mergekit "
        "takes the nearer bound."
    ),
    "fused-filter": (
        "A filter that names one of several projections which share a tensor (`q_proj` where the "
        "model has `qkv_proj`), and that tensor is merged as a whole: `docs/layouts.md` says when."
    ),
    "unmatched-filter": "A filter that matches no tensor, so that its value is not used.",
    "empty-slice": "A slice without layers: the second number of a `layer_range` does not count.",
    "renamed": "A name that a folder cannot have, and what the model is called instead.",
    "norm-merge-unused": "`norm_merge: geometric`, but no document is a `task_arithmetic`.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Args:
        check: Key of CHECKS.
        message: A sentence with the reason, which does not name the document.
        where: File and line.
        document: Name of the document that it is about, if it is about one as a whole.
    """

    check: str
    message: str
    where: str
    document: str | None = None

    def __str__(self) -> str:
        return _told([self])


def unsilenced(findings: Iterable[Finding], silence: Collection[str]) -> tuple[str, ...]:
    """Return findings as text, without those of the checks that are silenced.

    What is said of several documents or places is said once, where it was found first.
    """
    alike: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        if finding.check not in silence:
            alike.setdefault((finding.check, finding.message), []).append(finding)
    return tuple(map(_told, alike.values()))


def _told(alike: Sequence[Finding]) -> str:
    """Return findings of one check with one message as one line."""
    places = list(dict.fromkeys(f.where for f in alike))
    where = places[0] + (f" and {plural(len(places) - 1, 'more place')}" if places[1:] else "")
    documents = ", ".join(dict.fromkeys(f.document for f in alike if f.document))
    subject = f"{documents}: " if documents else ""
    return f"{where}: {subject}{alike[0].message} [{alike[0].check}]"
