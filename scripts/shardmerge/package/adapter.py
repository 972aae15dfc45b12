"""The folder of a LoRA adapter as peft reads it: one file of weights, its configuration."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path
from shardmerge.base.safetensors import read_header, write_header
from shardmerge.package.published_names import hub_name
from shardmerge.plan.adapter_description import AdapterDescription, MadeModule
from shardmerge.recipe.naming import short_public_names
from shardmerge.sources.adapter_config import CONFIG, WEIGHTS

#: What an adapter's folder has, in the order in which it is made.
FILES = (WEIGHTS, CONFIG, "mergekit_config.yml", "README.md", "provenance.json")


def join_factors(files: Sequence[Path], output: Path, chunk: int = 1 << 24) -> str:
    """Write the tensors of several files to one, in the order of their names.

    Args:
        files: Files of factors; their tensors have different names.
        output: The file to write.
        chunk: Bytes that are copied at once.

    Returns:
        Its SHA-256.

    Raises:
        UserError: If a file is damaged.
    """
    found = {name: (path, e) for path in files for name, e in read_header(path).tensors.items()}
    rows = [(name, found[name][1].dtype, found[name][1].shape) for name in sorted(found)]
    header = write_header(rows, {"format": "pt"})
    hasher = hashlib.sha256(header)
    with atomic_path(output) as part, open(part, "xb") as target:
        target.write(header)
        for name in sorted(found):
            path, entry = found[name]
            with open(path, "rb") as source:
                source.seek(entry.begin)
                for begin in range(entry.begin, entry.end, chunk):
                    data = source.read(min(chunk, entry.end - begin))
                    hasher.update(data)
                    target.write(data)
    return hasher.hexdigest()


def adapter_config(
    description: AdapterDescription, made: Iterable[MadeModule], base: str
) -> dict[str, Any]:
    """Return adapter_config.json as peft reads it.

    Args:
        description: Of the adapter.
        made: Its modules and what became of them.
        base: The base model as others find it.

    Raises:
        UserError: If nothing of the adapter is left: no module has an update.
    """
    ranks = {module.name: record.rank for module, record in made if record.rank}
    kinds = {module.name: module.kind for module, _ in made}
    if not ranks and not description.saved:
        raise UserError(
            f"the model is the same as {description.base!r}: no update is left for an adapter",
            f"adapter {description.name!r}",
        )
    rank = max(ranks.values(), default=1)
    others = {name: own for name, own in sorted(ranks.items()) if own != rank}
    plain = [name for name in ranks if kinds[name] != "experts"]
    fused = [name for name in ranks if kinds[name] == "experts"]
    alpha = rank if description.alpha is None else description.alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "rank_pattern": others,
        "alpha_pattern": others if description.alpha is None else {},
        "target_modules": target_names(plain, description.modules),
        "modules_to_save": saved_names(description.saved, description.modules) or None,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": description.turned,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    if fused:
        config["target_parameters"] = target_names(fused, description.modules)
    return config


def target_names(adapted: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Return the shortest names that say which modules are adapted and no others.

    Args:
        adapted: The modules.
        modules: Every module with a tensor.
    """
    wanted, alike = set(adapted), {}
    for module in modules:
        alike.setdefault(_last(module), set()).add(module)
    names = {_last(m) if alike.get(_last(m), {m}) <= wanted else m for m in wanted}
    return sorted(names)


def saved_names(ends: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Return the shortest names by which peft saves some modules whole and no others.

    peft compares ends of texts, not of dotted names: ``norm`` is an end of ``input_layernorm``.

    Args:
        ends: Ends of the dotted names of the modules.
        modules: Every module with a tensor.
    """
    known = list(modules)
    wanted = {m for m in known for end in ends if f".{m}".endswith(f".{end}")}
    names = set()
    for module in wanted:
        parts = module.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        only = (t for t in tails if all(m in wanted for m in known if m.endswith(t)))
        names.add(next(only, module))
    return sorted(names)


def _last(module: str) -> str:
    """Return the end of a module's name that its like in other layers has too."""
    match = re.search(r"(?:^|\.)(experts\.[^.0-9][^.]*)$", module)
    return match[1] if match else module.rsplit(".", 1)[-1]


def base_name(description: AdapterDescription) -> str:
    """Return the base model as others find it: its repository, or its folder's name alone."""
    base = description.base
    return hub_name(base, description.sources) or short_public_names([base])[base]


def config_text(config: Mapping[str, Any]) -> str:
    """Return adapter_config.json as peft writes it."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
