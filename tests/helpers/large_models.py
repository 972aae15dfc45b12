"""Plans of large models from locks alone: true names, shapes and sizes, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.models import llama_shapes
from shardmerge.base.files import write_json
from shardmerge.plan.decide import load_plan
from shardmerge.plan.plan import Plan
from shardmerge.recipe.recipe import load_recipe
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.sources import lock_path
from tools.bench.models import Shapes, lock_of

RECIPE = Path(__file__).parents[2] / "config" / "recipes" / "miquplus-midnight-70b.yaml"


def llama_70b(layers: int = 80) -> Shapes:
    """Return the tensors of a Llama-2-70B of some number of layers, with their shapes."""
    return llama_shapes(layers, hidden=8192, inter=28672, vocab=32000, kv=1024)


def mixtral(layers: int = 32, experts: int = 8) -> Shapes:
    """Return the tensors of a Mixtral-like mixture of experts, with their shapes."""
    wide = {"self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096)}
    wide |= {"self_attn.v_proj": (1024, 4096), "self_attn.o_proj": (4096, 4096)}
    wide |= {"block_sparse_moe.gate": (experts, 4096)}
    for i in range(experts):
        name = f"block_sparse_moe.experts.{i}"
        wide |= {f"{name}.w1": (14336, 4096), f"{name}.w2": (4096, 14336)}
        wide |= {f"{name}.w3": (14336, 4096)}
    wide |= {"input_layernorm": (4096,), "post_attention_layernorm": (4096,)}
    shapes: Shapes = {"model.embed_tokens.weight": (32000, 4096)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{n}.weight": s for n, s in wide.items()}
    return shapes | {"model.norm.weight": (4096,), "lm_head.weight": (32000, 4096)}


def large_plan(
    folder: Path, shapes: Shapes, recipe: str | None = None, files: int = 15, **settings: Any
) -> Plan:
    """Write recipe and lock to a folder, and return the plan; the working directory keeps it."""
    path = folder / "recipe.yaml"
    path.write_text(recipe or RECIPE.read_text(encoding="utf-8"), encoding="utf-8")
    references = [reference.model for reference in load_recipe(path).sources]
    write_json(lock_path(path), lock_of(references, shapes, files).to_json())
    loaded = load_settings({"recipes": [str(path)], **settings})
    return load_plan(loaded, say=lambda line: None)
