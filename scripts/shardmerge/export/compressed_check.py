"""A finished compressed export: its shards and small files together, as a record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, sha256_of
from shardmerge.base.safetensors import read_header
from shardmerge.base.weightfolders import folder_of
from shardmerge.check.load import load_model
from shardmerge.export.compressed_compare import REMAKE, ShardComparison, told_digits
from shardmerge.export.compressed_library import library_version
from shardmerge.export.record import ExportErrors, ExportFile, ExportRecord
from shardmerge.export.schemes import ExportScheme
from shardmerge.export.selection import Selection
from shardmerge.sources.checkpoint_files import CONFIG, INDEX

#: What config.json has beyond the model's.
QUANTIZATION = "quantization_config"
#: What it calls the type of a model.
_TYPES = ("dtype", "torch_dtype")


def check_compressed(
    folder: Path,
    files: Iterable[str],
    model: Path,
    build: str,
    scheme: ExportScheme,
    selection: Selection,
    shards: Mapping[str, ShardComparison],
) -> ExportRecord:
    """Put together what is known of an export, and compare its small files with the model's.

    Args:
        folder: The export's.
        files: Names of all its files but those that ``package_export`` writes.
        model: The model's folder.
        build: Digest of the model's build.
        scheme: How weights are quantised.
        selection: Which are.
        shards: From ``compare_shard``, by the shards' names.

    Raises:
        UserError: If it is damaged, not what the model is, or farther from it than rounding
            explains.
    """
    small = sorted(set(files) - set(shards))
    seen = _compare_small(folder, model, small, shards, scheme)
    seen["architecture"], unknown = _architecture(folder, model, selection)
    errors = _put_together(shards.values())
    if errors.median > scheme.most:
        raise UserError(
            f"has a median error of {errors.median:.2g}, and {scheme.name} explains at most "
            f"{scheme.most}",
            str(folder),
            "It is not published. Some weights may be far larger than the others: see the errors "
            "of the matrices, and name these modules in `exports.compressed.ignore`.",
        )
    told = {n: ExportFile(sha256=sha256_of(folder / n), size=(folder / n).stat().st_size)
            for n in small}  # fmt: skip
    told |= {name: shard.file for name, shard in shards.items()}
    elements = sum(shard.elements for shard in shards.values())
    return ExportRecord(
        form=scheme.name,
        variant=scheme.name,
        build=build,
        files=dict(sorted(told.items())),
        tensors={
            "export": sum(shard.stored for shard in shards.values()),
            "model": sum(shard.same + len(shard.errors) for shard in shards.values()),
        },
        bits_per_weight=round(sum(s.bits for s in shards.values()) / max(1, elements), 4),
        metadata={key: told for key, told in seen.items() if told},
        not_checked={"architecture": unknown} if unknown else {},
        errors=errors,
        tools=library_version(),
        kept=dict(sorted(selection.kept.items())),
    )


def _architecture(folder: Path, model: Path, selection: Selection) -> tuple[str, str]:
    """Return what transformers makes of the tensors' names, or why that is not known.

    Raises:
        UserError: If it loads the model, and not the export.
    """
    try:
        found = load_model(folder, weights=False)
    except UserError:
        try:
            load_model(model, weights=False)
        except UserError as error:
            return "", error.message
        raise
    modules = {name.rpartition(".")[0] for name in selection.weights}
    for name in found["unused"]:
        if (module := name.rpartition(".")[0]) in modules:
            raise UserError(
                f"{module!r} is quantised, and is no linear layer of {found['architecture']} in "
                "transformers",
                str(folder),
                "Name it, or a regular expression for its kind, in `exports.compressed.ignore` "
                "beside what the default is.",
            )
    return f"{found['architecture']} has all tensors as linear layers in transformers", ""


def _put_together(shards: Iterable[ShardComparison]) -> ExportErrors:
    found = list(shards)
    errors = {name: error for shard in found for name, error in shard.errors.items()}
    farthest = {name: far for shard in found for name, far in shard.farthest.items()}
    return ExportErrors(
        compared=len(errors) + sum(shard.same for shard in found),
        rows=None,
        median=told_digits(median(errors.values())),
        largest=max(errors.values()),
        tensors=dict(sorted(errors.items())),
        farthest=dict(sorted(farthest.items())),
    )


def _compare_small(
    folder: Path,
    model: Path,
    small: Sequence[str],
    shards: Mapping[str, ShardComparison],
    scheme: ExportScheme,
) -> dict[str, str]:
    """Return what of the small files was compared.

    Raises:
        UserError: If one is not what it should be.
    """
    seen: dict[str, str] = {}
    for name in small:
        if name == INDEX:
            _check_index(folder, shards)
            seen[name] = "names the shard of each tensor"
        elif name == CONFIG:
            seen[name] = _compare_config(folder / name, model / name, scheme)
        elif sha256_of(folder / name) == sha256_of(model / name):
            seen[name] = "the model's"
        else:
            raise UserError("is not the model's", str(folder / name), REMAKE)
    return seen


def _compare_config(path: Path, model: Path, scheme: ExportScheme) -> str:
    """Return what of an export's config.json was compared with the model's."""
    found, wanted = load_json(path), load_json(model)
    found.pop(QUANTIZATION, None)
    told = f"the model's, and {QUANTIZATION}"
    if scheme.runs:
        told += f", and {scheme.runs} to run in"
        found, wanted = ({k: v for k, v in c.items() if k not in _TYPES} for c in (found, wanted))
    if found != wanted:
        raise UserError(f"is not {told}", str(path), REMAKE)
    return told


def _check_index(folder: Path, shards: Iterable[str]) -> None:
    if load_json(folder / INDEX) != json.loads(export_index(folder, shards)):
        raise UserError("does not tell which tensors the shards have", str(folder / INDEX), REMAKE)


def export_index(folder: Path, shards: Iterable[str]) -> str:
    """Return the index of an export's shards, as transformers writes it.

    Args:
        folder: Where they are.
        shards: Their names.
    """
    rows = {
        name: (shard, tensor_bytes(place.dtype, place.shape))
        for shard in shards
        if not folder_of(shard)
        for name, place in read_header(folder / shard).tensors.items()
    }
    index: dict[str, Any] = {
        "metadata": {"total_size": sum(size for _, size in rows.values())},
        "weight_map": {name: shard for name, (shard, _) in rows.items()},
    }
    return json.dumps(index, indent=2, sort_keys=True) + "\n"
