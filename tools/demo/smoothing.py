"""SmoothQuant's smoothing of a Llama model: the same function with other scales of its norms."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from transformers import LlamaForCausalLM

_LEAST = 1e-5  # so that a channel that nothing passes or reads divides by no 0


@torch.no_grad()
def smoothed(
    model: LlamaForCausalLM, tokens: torch.Tensor, strength: float = 0.5
) -> LlamaForCausalLM:
    """Return a model with part of its activations' sizes moved from the norms into the weights.

    Where a norm with scale ``g`` is read by projections ``W``, each channel j gets
    ``s_j = max|X_j| ** strength / max|W_j| ** (1 - strength)``, X being what leaves the norm and
    W_j the columns of all its readers; then ``g / s`` and ``W * s`` compute what ``g`` and ``W``
    did. So are both norms of every layer; the last norm, which the head reads, stays. Xiao et
    al. 2023, "SmoothQuant", arXiv:2211.10438, equations 3 and 4.

    Args:
        model: In evaluation mode; not changed.
        tokens: Token ids to measure X on, [texts, tokens].
        strength: The paper's alpha.

    Returns:
        A model in the same type.
    """
    made = copy.deepcopy(model)
    largest: dict[torch.nn.Module, torch.Tensor] = {}

    def measure(norm: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        largest[norm] = output.abs().amax((0, 1))

    pairs = list(_norms_and_readers(made))
    hooks = [norm.register_forward_hook(measure) for norm, _ in pairs]
    made(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    for norm, readers in pairs:
        columns = torch.cat([reader.weight.abs() for reader in readers]).amax(0)
        scale = largest[norm].clamp(min=_LEAST) ** strength
        scale /= columns.clamp(min=_LEAST) ** (1 - strength)
        norm.weight /= scale
        for reader in readers:
            reader.weight *= scale
    return made


def _norms_and_readers(
    model: LlamaForCausalLM,
) -> Iterator[tuple[torch.nn.Module, list[torch.nn.Linear]]]:
    """Yield every norm of the layers with the projections that read what leaves it."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]
        yield layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]
