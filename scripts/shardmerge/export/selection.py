"""Which weights of a model are quantised: decided by names and shapes, without its definition.

What is meant are the weights of linear layers. A pattern is as compressed-tensors and vLLM read
it: the name of a module, or ``re:`` and a regular expression that fits its beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.weightfolders import folder_of, in_folder
from shardmerge.export.schemes import ExportScheme
from shardmerge.plan.description import BuildDescription

REGEX = "re:"
#: Modules that stay as they are, if the configuration does not say which: heads, embeddings,
#: norms, routers of experts, and what reads pictures or sound.
IGNORED = (
    r"re:(.*\.)?(lm_head|embed_out|output_layer|score|classifier|qa_outputs)$",
    r"re:.*(embed|embd|wte|wpe|shared$)",
    r"re:.*norm",
    r"re:.*\.(gate|router|shared_expert_gate)(\..+)?$",
    r"re:.*(vision|visual|audio|multi_modal)",
)
#: Modules under one parent that run as one matrix, so that they must share an overall scale.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("wq_a", "wkv_a_with_mqa"),
)
_WEIGHT = ".weight"
_BIAS = ".bias"
_EXPERTS = re.compile(r"(^|\.)experts(\.|$)")
#: Why experts are kept that no file has one by one.
STACKED_EXPERTS = "experts in one tensor of three dimensions"
_FLOATS = ("F32", "F16", "BF16")
#: Of a tensor, dtype code and shape.
TensorRow = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Selection:
    """The weights of a model that are quantised.

    Args:
        weights: Names of their tensors, sorted.
        kept: Other matrices, with the reason.
        ignore: Patterns of the modules that are not, as the model's configuration lists them.
    """

    weights: tuple[str, ...]
    kept: Mapping[str, str]
    ignore: tuple[str, ...]

    def of(self, shard: str) -> Selection:
        """Return what of it counts in a shard: of a module beside the model nothing is quantised.

        Args:
            shard: Its name relative to the model's folder.
        """
        return replace(self, weights=()) if folder_of(shard) else self


def chosen_options(scheme: ExportScheme, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the configuration counts for a scheme.

    Args:
        scheme: The scheme.
        options: ``exports.compressed``.
    """
    ignore = IGNORED if options["ignore"] is None else options["ignore"]
    columns = options["group_size"] if scheme.grouped else scheme.columns
    return {"columns": columns, "ignore": list(ignore)}


def with_options(scheme: ExportScheme, options: Mapping[str, Any]) -> ExportScheme:
    """Return a scheme with the groups that ``chosen_options`` tells."""
    return replace(scheme, columns=options["columns"])


def model_tensors(description: BuildDescription) -> dict[str, TensorRow]:
    """Return all tensors of a model, those of its modules' folders with the folder in front."""
    return {
        in_folder(folder_of(shard.file), name): row
        for shard in description.shards
        for name, row in shard.tensors.items()
    }


def select(
    tensors: Mapping[str, TensorRow], scheme: ExportScheme, ignore: Sequence[str]
) -> Selection:
    """Return which weights of a model are quantised.

    Args:
        tensors: All of the model.
        scheme: The scheme, with its groups.
        ignore: Patterns of modules that stay as they are.
    """
    weights, kept, odd = [], {}, []
    for name, row in sorted(tensors.items()):
        module = name.removesuffix(_WEIGHT)
        if len(row[1]) < 2:
            continue
        if pattern := next((p for p in ignore if _fits(module, p)), None):
            kept[name] = f"ignored by {pattern}"
        elif why := _objection(name, row, scheme):
            kept[name] = why
            odd.append(module)
        else:
            weights.append(name)
    return Selection(tuple(weights), kept, (*ignore, *odd))


def check_selection(
    selection: Selection, tensors: Mapping[str, TensorRow], scheme: ExportScheme, where: str
) -> None:
    """Tell before any job if a model has nothing to quantise, or what is no linear layer.

    A linear layer has a bias for each row of its matrix. Other layers, such as those of GPT-2,
    keep their matrices as [inputs, outputs], and groups and scales of rows would be wrong.

    Args:
        selection: What of the model is quantised.
        tensors: All of the model.
        scheme: The scheme, with its groups.
        where: What is told of the place.

    Raises:
        UserError: If so.
    """
    if not selection.weights:
        reasons = sorted(set(selection.kept.values()))
        raise UserError(
            f"has no matrix that {scheme.name} can quantise: {'; '.join(reasons[:4])}",
            where,
            "Take another scheme, a smaller `exports.compressed.group_size`, or fewer patterns in "
            "`exports.compressed.ignore`.",
        )
    for name in selection.weights:
        rows, columns = tensors[name][1]
        bias = tensors.get(name.removesuffix(_WEIGHT) + _BIAS)
        if bias and bias[1] == (columns,) != (rows,):
            raise UserError(
                f"cannot be quantised by {scheme.name}: {name.removesuffix(_WEIGHT)!r} has a "
                f"matrix of {rows} x {columns} and a bias of {columns}, so it keeps its matrix as "
                "[inputs, outputs] and is no linear layer",
                where,
                "Models like GPT-2 do so. Export it to GGUF, or name such modules in "
                "`exports.compressed.ignore` beside what the default is.",
            )


def stacked_share(selection: Selection, tensors: Mapping[str, TensorRow]) -> float:
    """Return which part of a model's values are experts that are kept since they are stacked."""
    sizes = {name: prod(shape) for name, (_, shape) in tensors.items()}
    kept = sum(sizes[name] for name, why in selection.kept.items() if why == STACKED_EXPERTS)
    return kept / max(1, sum(sizes.values()))


def fused_with(weight: str) -> Iterator[str]:
    """Yield the names of weights that a weight must share its overall scale with."""
    parent, _, last = weight.removesuffix(_WEIGHT).rpartition(".")
    for modules in _FUSED:
        if last in modules:
            yield from (f"{parent}.{m}{_WEIGHT}" for m in modules if m != last)


def partners(weights: Iterable[str], selection: Selection) -> set[str]:
    """Return the weights that some must share their overall scales with, these left out."""
    own, chosen = set(weights), set(selection.weights)
    return {p for name in own for p in fused_with(name) if p in chosen} - own


def _fits(module: str, pattern: str) -> bool:
    if pattern.startswith(REGEX):
        return re.match(pattern.removeprefix(REGEX), module) is not None
    return pattern == module


def _objection(name: str, row: TensorRow, scheme: ExportScheme) -> str | None:
    """Return why a matrix cannot be quantised, None if it can."""
    dtype, shape = row
    if folder_of(name):
        return "of a module beside the model"
    if len(shape) == 3 and _EXPERTS.search(name):
        return STACKED_EXPERTS
    if not name.endswith(_WEIGHT) or len(shape) != 2:
        return "no weight of a linear layer"
    if dtype not in _FLOATS:
        return f"of type {dtype}"
    if scheme.columns and shape[1] % scheme.columns:
        return f"its {shape[1]} columns are no multiple of {scheme.columns}"
    return None if all(shape) else "empty"
