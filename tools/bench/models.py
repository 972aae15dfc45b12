"""Synthetic checkpoints for measurements: true shapes and sizes, random weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.identities import LockedFile
from shardmerge.base.safetensors import write_header
from shardmerge.sources.checkpoint_files import INDEX
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor
from shardmerge.sources.tokenizer.vocabulary import Vocabulary

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """A Llama model and the number of files that it is spread over."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    files: int
    kv: int | None = None

    @property
    def shapes(self) -> Shapes:
        """Its tensors' shapes, in the order of its files."""
        kv = self.kv or self.hidden
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            shapes[f"{name}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{name}.post_attention_layernorm.weight"] = (self.hidden,)
            for part, rows in (("q", self.hidden), ("k", kv), ("v", kv), ("o", self.hidden)):
                shapes[f"{name}.self_attn.{part}_proj.weight"] = (rows, self.hidden)
            for part in ("gate", "up"):
                shapes[f"{name}.mlp.{part}_proj.weight"] = (self.intermediate, self.hidden)
            shapes[f"{name}.mlp.down_proj.weight"] = (self.hidden, self.intermediate)
        head = {"lm_head.weight": (self.vocabulary, self.hidden)}
        return shapes | {"model.norm.weight": (self.hidden,)} | head


#: What builds are measured on.
SIZES = {
    "400MB": Size(10, 1024, 2816, 32000, 3),
    "small": Size(4, 512, 1408, 4000, 3),
    "2GB": Size(22, 2048, 5632, 32000, 5),
    "6GB": Size(26, 3200, 8640, 32000, 10),
}
#: What plans are measured on.
LARGE = {
    "70B": Size(80, 8192, 28672, 32000, 15, 1024),
    "405B": Size(126, 16384, 53248, 128256, 191, 1024),
}


def experts(layers: int, count: int) -> Shapes:
    """Return the tensors of a mixture of experts with so many experts in each layer."""
    shapes = Size(layers, 4096, 14336, 32000, 1, 1024).shapes
    dense = {name for name in shapes if ".mlp." in name}
    shapes = {name: shape for name, shape in shapes.items() if name not in dense}
    for layer in range(layers):
        name = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{name}.gate.weight"] = (count, 4096)
        for i in range(count):
            shapes |= {f"{name}.experts.{i}.{w}.weight": (14336, 4096) for w in ("w1", "w3")}
            shapes[f"{name}.experts.{i}.w2.weight"] = (4096, 14336)
    return shapes


def make_model(folder: Path, size: Size, config: Mapping[str, object], seed: int) -> None:
    """Write a float16 checkpoint of random weights, without a tokenizer."""
    import numpy as np

    folder.mkdir(parents=True)
    heads = size.hidden // 64
    sizes = {"hidden_size": size.hidden, "intermediate_size": size.intermediate}
    sizes |= {"num_hidden_layers": size.layers, "vocab_size": size.vocabulary, "head_dim": 64}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    (folder / "config.json").write_text(json.dumps({**config, **sizes}, indent=2) + "\n")
    block = (np.random.default_rng(seed).standard_normal(1 << 20) * 0.02).astype(np.float16)
    names, files, weight_map = list(size.shapes), size.files, {}
    for k in range(files):
        chosen = names[len(names) * k // files : len(names) * (k + 1) // files]
        file = f"model-{k + 1:05d}-of-{files:05d}.safetensors"
        with open(folder / file, "wb") as out:
            out.write(write_header([(n, "F16", size.shapes[n]) for n in chosen], {"format": "pt"}))
            for name in chosen:
                left = math.prod(size.shapes[name])
                while left > 0:
                    out.write(block[: min(left, block.size)].tobytes())
                    left -= block.size
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


def lock_of(references: list[str], shapes: Shapes, files: int) -> Lock:
    """Return a lock of sources on the Hub that have these tensors in float16: no weights at all."""
    return Lock({name: _source(name, shapes, files + i) for i, name in enumerate(references)})


def _source(repo: str, shapes: Shapes, files: int) -> LockedSource:
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
    mark = hashlib.sha256(repo.encode()).hexdigest()
    locked = {n: LockedFile(s, sha256=f"{i:04d}{mark}"[:64]) for i, (n, s) in
              enumerate(sizes.items())}  # fmt: skip
    small = ("config.json", "tokenizer.json", "tokenizer_config.json")
    locked |= {name: LockedFile(600, git_oid=mark[:40]) for name in small}
    config = {"model_type": "llama"}
    tokens = Vocabulary.of({f"token {i}": i for i in range(shapes["lm_head.weight"][0])})
    return LockedSource("hub", repo, None, mark[:40], config, locked, tensors, vocabulary=tokens)
