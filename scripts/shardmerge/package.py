"""What surrounds the weights in a model's folder: config, index, provenance, checksums."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import shardmerge
from shardmerge.dtypes import DTYPES
from shardmerge.errors import UserError
from shardmerge.files import load_json

_TOOLS = (
    "torch",
    "safetensors",
    "numpy",
    "snakemake",
    "huggingface_hub",
    "transformers",
    "lm_eval",
)


def output_config(source: str, dtype: str | None, where: str) -> str:
    """Return the text of a config.json with its dtype set and nothing else changed.

    Args:
        source: Text of the reference model's config.json.
        dtype: Name of the output's type, or None to leave it.
        where: The file, for messages.

    Raises:
        UserError: If the text is not a JSON object.
    """
    try:
        config = json.loads(source)
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", where) from None
    if not isinstance(config, dict):
        raise UserError("is not a JSON object", where)
    if dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def index(description: Mapping[str, Any]) -> str:
    """Return the text of a build's model.safetensors.index.json."""
    total, weight_map = 0, {}
    for shard in description["shards"]:
        for name, (dtype, shape) in shard["tensors"].items():
            total += math.prod(shape) * DTYPES[dtype].size
            weight_map[name] = shard["file"]
    table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(table, indent=2) + "\n"


def provenance(
    description: Mapping[str, Any],
    digest: str,
    records: Iterable[Path],
    verified: Path,
    files: Iterable[Path],
) -> dict[str, Any]:
    """Return what a model was made from and with: no host, user, path or time in it.

    Args:
        description: The build's description in the plan.
        digest: Its digest.
        records: The shards' merge records, ``SHARD.json``.
        verified: The record of the verification.
        files: The other files of the model.

    Returns:
        JSON-able data; the same for the same build, whenever and wherever it was made.
    """
    outputs = {path.name: _content(path) for path in files}
    for path in records:
        record = load_json(path)
        row = {"sha256": record["sha256"], "size": record["size"], "spec": record["spec"]}
        row["copied_whole"] = record["whole_copy"]
        if record["nonfinite"]:
            row["nonfinite"] = record["nonfinite"]
        outputs[f"{path.stem}.safetensors"] = row
    text = description["recipe"]["text"]
    return {
        "name": description["name"],
        "build": digest,
        "recipe": {"sha256": hashlib.sha256(text.encode()).hexdigest()},
        "numerics": description["numerics"],
        "sources": description["sources"],
        "tools": {"shardmerge": shardmerge.__version__, "python": platform.python_version()}
        | {name: found for name in _TOOLS if (found := _version(name))},
        "verified": {k: v for k, v in load_json(verified).items() if k != "seconds"},
        "files": dict(sorted(outputs.items())),
    }


def checksums(files: Iterable[Path], records: Iterable[Path]) -> str:
    """Return the text of SHA256SUMS; the shards' sums are those of the jobs that wrote them."""
    sums = {path.name: _content(path)["sha256"] for path in files}
    sums |= {f"{path.stem}.safetensors": load_json(path)["sha256"] for path in records}
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def _content(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "size": path.stat().st_size,
        }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
