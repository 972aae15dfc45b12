"""Plans of large models from locks alone: true names, shapes and sizes, no weights."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from models import llama_shapes

from shardmerge.files import write_json
from shardmerge.lock import Lock, LockedFile, LockedSource, LockedTensor
from shardmerge.plan import Plan
from shardmerge.planning import load_plan
from shardmerge.recipe import load_recipe
from shardmerge.settings import load_settings
from shardmerge.sources import lock_path
from shardmerge.tokenizer.vocabulary import Vocabulary

RECIPE = Path(__file__).parents[1] / "config" / "recipes" / "miquplus-midnight-70b.yaml"

Shapes = dict[str, tuple[int, ...]]


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


def hub_source(repo: str, shapes: Shapes, files: int) -> LockedSource:
    """Return a source on the Hub that has these tensors in float16, spread over some files."""
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    names = [f"model-{i:05d}-of-{files:05d}.safetensors" for i in range(1, files + 1)]
    sizes = dict.fromkeys(names, 1024)
    tensors, before = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        file = names[min(before * files // total, files - 1)]
        tensors[name] = LockedTensor(file, "F16", shape, sizes[file], sizes[file] + size)
        sizes[file] += size
        before += size
    mark = repo.encode().hex()
    locked = {n: LockedFile(s, sha256=f"{i:02d}{mark}".ljust(64, "0")[:64])
              for i, (n, s) in enumerate(sizes.items())}  # fmt: skip
    locked |= {name: LockedFile(600, git_oid=mark.ljust(40, "0")[:40]) for name in
               ("config.json", "tokenizer.json", "tokenizer_config.json")}  # fmt: skip
    return LockedSource(
        "hub", repo, None, mark.ljust(40, "0")[:40], {"model_type": "llama"}, locked, tensors,
        vocabulary=_vocabulary(),
    )  # fmt: skip


@cache
def _vocabulary() -> Vocabulary:
    return Vocabulary.of({f"token{i}": i for i in range(32000)})


def large_plan(
    folder: Path, shapes: Shapes, recipe: str | None = None, files: int = 15, **settings
) -> Plan:
    """Write recipe and lock to a folder, and return the plan; the working directory keeps it."""
    path = folder / "recipe.yaml"
    path.write_text(recipe or RECIPE.read_text(encoding="utf-8"), encoding="utf-8")
    references = [reference.model for reference in load_recipe(path).sources]
    lock = Lock({r: hub_source(r, shapes, files + i) for i, r in enumerate(references)})
    write_json(lock_path(path), lock.to_json())
    loaded = load_settings({"recipes": [str(path)], **settings})
    return load_plan(loaded, say=lambda line: None)
