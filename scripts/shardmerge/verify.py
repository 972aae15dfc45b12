"""The model as a whole: complete, as planned, and something that transformers can run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shardmerge.errors import UserError
from shardmerge.files import load_json
from shardmerge.headers import read_header


def check_files(
    description: Mapping[str, Any], model: Path, records: Iterable[Path], checks: Iterable[Path]
) -> dict[str, Any]:
    """Check that a model's folder holds what was planned, nothing less and no other weights.

    Returns:
        Counts for the record of the verification.

    Raises:
        UserError: Names the first file or tensor that is not as it should be.
    """
    shards = {shard["file"]: shard["tensors"] for shard in description["shards"]}
    found = {path.name for path in model.glob("*.safetensors")}
    for name in sorted(found ^ set(shards)):
        what = "was not planned" if name in found else "is missing"
        raise UserError(f"the file {name!r} {what}", str(model))
    sizes = {f"{path.stem}.safetensors": load_json(path)["size"] for path in records}
    tensors = 0
    for name, wanted in shards.items():
        path = model / name
        if path.stat().st_size != sizes[name]:
            raise UserError(f"has not the {sizes[name]} bytes that were written", str(path))
        header = read_header(path)
        have = {n: [e.dtype, list(e.shape)] for n, e in header.tensors.items()}
        if have != dict(wanted):
            odd = next(n for n in sorted({*have, *wanted}) if have.get(n) != wanted.get(n))
            raise UserError(f"tensor {odd!r} is not as it was planned", str(path))
        tensors += len(have)
    index = model / "model.safetensors.index.json"
    if len(shards) > 1:
        weight_map = {t: name for name, table in shards.items() for t in table}
        if load_json(index).get("weight_map") != weight_map:
            raise UserError("does not name the tensors of the shards", str(index))
    samples = [load_json(path) for path in checks]
    return {
        "shards": len(shards),
        "tensors": tensors,
        "sampled_elements": sum(sample["elements"] for sample in samples),
        "largest_error": max((sample["largest_error"] for sample in samples), default=0.0),
        "not_sampled": sorted(t for sample in samples for t in sample["not_sampled"]),
    }


def check_loading(model: Path, description: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Load a model with transformers, offline and without remote code, and let it generate.

    Args:
        model: The folder.
        description: The build's description.
        limit: Bytes of weights above which only names and shapes are compared.

    Raises:
        UserError: If transformers cannot load it, or misses weights.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    tensors = {t: row for shard in description["shards"] for t, row in shard["tensors"].items()}
    size = sum((model / shard["file"]).stat().st_size for shard in description["shards"])
    try:
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
        auto = transformers.AutoModelForCausalLM
        if size > limit:
            with torch.device("meta"):
                skeleton = auto.from_config(config, trust_remote_code=False)
            shapes = {n: list(p.shape) for n, p in skeleton.named_parameters()}
            for name, shape in shapes.items():
                if name in tensors and tensors[name][1] != shape:
                    raise UserError(f"tensor {name!r} has not the shape that its config makes")
            return {"loaded": False, "reason": f"larger than {limit} bytes"}
        loaded, info = auto.from_pretrained(
            model, trust_remote_code=False, dtype="auto", output_loading_info=True
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise UserError(f"transformers misses tensor {missing[0]!r}", str(model))
        prompt = torch.tensor([[config.bos_token_id or 0]])
        made = loaded.generate(prompt, max_new_tokens=4, do_sample=False)
        result = {"loaded": True, "generated_tokens": int(made.shape[1]) - 1}
        if (model / "tokenizer_config.json").exists():
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            result["tokenizer_size"] = len(tokenizer)
        return result
    except UserError:
        raise
    except Exception as error:  # transformers raises anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"transformers cannot load it ({type(error).__name__}: {first})", str(model)
        ) from None
