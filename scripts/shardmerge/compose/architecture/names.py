"""What tensor names tell: the layer, the module, and which tensors are not weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from shardmerge.base.weightfolders import folder_of

_INDEX = "(0|[1-9][0-9]{0,3})"
_LAYER = re.compile(rf"(?:^|\.)(?:layers|h|blocks|block|layer)\.{_INDEX}\.")
#: A stack of another name: a number and below it a module, not just a parameter.
_NUMBER = re.compile(rf"\.{_INDEX}\.(?=[^.]+\.)")
#: Buffers that older checkpoints carry and that newer ones compute; nobody misses them.
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.position_ids$")
_EMBEDDINGS = (
    "embed_tokens",
    "embed_in",
    "wte",
    "word_embeddings",
    "embeddings",
    "embedding",
    "tok_embeddings",
    "shared",
)
#: Where models of encoder and decoder, and BERT with its head, have the embedding again.
_COPY = re.compile(
    r"(?:^|\.)(?:(?:encoder|decoder)\.embed_tokens|cls\.predictions\.decoder)\.weight$"
)
#: What BERT and its kin have for every token beside their embeddings: a last layer, and its bias.
_PREDICTIONS = re.compile(
    r"(?:^|\.)(?:predictions\.bias|predictions\.decoder\.(?:weight|bias)"
    r"|(?:lm_head\.decoder|vocab_projector|generator_lm_head)\.(?:weight|bias))$"
)
_OTHER_INPUT = re.compile(r"vision|visual|audio")
_HEADS = ("lm_head", "embed_out", "output", "output_layer")
_BEFORE = re.compile(
    r"embed|embd|(?:^|\.)(?:wte|wpe|shared|conv1|conv2|patch_conv|ln_pre|layernorm_pre|relative_pe"
    r"|rotary_pos_emb)(?:\.|$)"
)


@cache
def layer_of(tensor: str) -> tuple[str, int] | None:
    """Return (prefix of the stack of layers, layer number), or None outside layers."""
    match = _layer(tensor)
    return (tensor[: match.start(1)], int(match[1])) if match else None


def layer_counts(tensors: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of every stack, by its prefix."""
    counts: dict[str, int] = {}
    for found in dict.fromkeys(map(layer_of, tensors)):
        if found:
            counts[found[0]] = max(counts.get(found[0], 0), found[1] + 1)
    return counts


def layer_fraction(tensor: str, counts: dict[str, int]) -> float:
    """Return ``t``: layer i of n is at i/(n-1), a single layer at 1, other tensors at 0.

    What stands behind the last layer is at 1.
    """
    found = layer_of(tensor)
    if found is None:
        return 0.0
    count = counts[found[0]]
    return min(found[1] / (count - 1), 1.0) if count > 1 else 1.0


def module_of(tensor: str) -> str:
    """Return a tensor's module within its layer, or its own name without the parameter's.

    ``model.layers.3.mlp.up_proj.weight`` is of ``mlp.up_proj``, ``lm_head.weight`` of ``lm_head``.
    """
    match = _layer(tensor)
    rest = tensor[match.end() :] if match else tensor.removeprefix("model.")
    return rest.removesuffix(".weight")


def _layer(tensor: str) -> re.Match[str] | None:
    if "/" in tensor and folder_of(tensor):
        return None
    return _LAYER.search(tensor) or _NUMBER.search(tensor)


def is_derived(tensor: str) -> bool:
    """Whether a tensor is a buffer that models compute by themselves."""
    return _DERIVED.search(tensor) is not None


def is_mask(tensor: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is the mask of causal attention, which older checkpoints carry."""
    return tensor.endswith(".bias") and len(shape) == 4 and shape[:2] == (1, 1)


@cache
def is_head(tensor: str) -> bool:
    """Whether a tensor is the output embedding, which a tied model does not store."""
    return _is_of_a_head(tensor) and not is_optional(tensor)


def _is_of_a_head(tensor: str) -> bool:
    return layer_of(tensor) is None and _last_module(tensor) in _HEADS


@cache
def is_embedding(tensor: str) -> bool:
    """Whether a tensor is the input embedding: of tokens, not of pictures or sound."""
    if layer_of(tensor) or _OTHER_INPUT.search(tensor):
        return False
    return _last_module(tensor) in _EMBEDDINGS


def _last_module(tensor: str) -> str:
    return tensor.rpartition(".")[0].rpartition(".")[2]


def is_tied(tensor: str) -> bool:
    """Whether a tensor is the input embedding again in models that tie the two.

    Older files hold such copies, newer ones the input embedding alone.
    """
    return is_head(tensor) or _COPY.search(tensor) is not None


@cache
def is_vocabulary(tensor: str) -> bool:
    """Whether a tensor has a row, or in a bias a number, for every token."""
    if layer_of(tensor):  # most are of a layer
        return False
    if is_embedding(tensor) or _is_of_a_head(tensor):
        return True
    return _PREDICTIONS.search(tensor) is not None


def is_before(tensor: str) -> bool:
    """Whether a tensor outside layers is read before the layers: embeddings and what is at them."""
    return not is_head(tensor) and _BEFORE.search(tensor) is not None


def is_optional(tensor: str) -> bool:
    """Whether a model may lack a tensor that another of its architecture has: a bias."""
    return tensor.endswith("bias")
