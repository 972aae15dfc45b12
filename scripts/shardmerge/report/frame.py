"""Where a model's tensors stand in a table of layers and modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shardmerge.compose.architecture.names import is_embedding, is_head, layer_of, module_of

#: The experts of a layer share one row.
_EXPERT = re.compile(r"\bexperts?\.(\d+)(?=\.)")
_NORM = re.compile(r"norm|(^|\.)ln_")
_ATTENTION = re.compile(r"attn|attention")
_ROUTER = re.compile(r"(^|\.)(gate|router)$")
#: Within attention and feed-forward blocks: the order in which data passes.
_FLOW = ("q_proj", "k_proj", "v_proj", "qkv", "query_key_value", "c_attn", "o_proj")
_FLOW += ("gate", "w1", "up_proj", "w3", "c_fc", "down_proj", "w2")

#: A row's label and the layer, None outside layers.
Cell = tuple[str, "int | None"]


@dataclass(frozen=True)
class Frame:
    """Rows and columns of a model.

    Args:
        modules: Labels of what layers have, in the order in which data passes, norms last.
        outside: Labels of the tensors outside layers.
        layers: Number of columns: of the longest stack of layers.
        experts: Number of experts that one row stands for, 0 where there are none.
        cells: Each tensor's place.
    """

    modules: tuple[str, ...]
    outside: tuple[str, ...]
    layers: int
    experts: int
    cells: Mapping[str, Cell]


def frame_of(tensors: Iterable[str]) -> Frame:
    """Return the frame of a model with these tensor names."""
    experts = 0
    layers = 0
    found: dict[str, tuple[str, str, int | None]] = {}
    stacks: dict[str, None] = {}
    for tensor in tensors:
        module = module_of(tensor)
        if match := _EXPERT.search(module):
            experts = max(experts, int(match[1]) + 1)
            module = _EXPERT.sub(lambda m: m[0].replace(m[1], "*"), module)
        stack, layer = layer_of(tensor) or ("", None)
        if layer is not None:
            stacks[stack] = None
            layers = max(layers, layer + 1)
        found[tensor] = (stack, module, layer)
    rows = list(dict.fromkeys((s, m) for s, m, layer in found.values() if layer is not None))
    rows.sort(key=lambda row: (list(stacks).index(row[0]), *_rank(row[1])))
    outside = list(dict.fromkeys((s, m) for s, m, layer in found.values() if layer is None))
    outside.sort(key=lambda row: _outside_rank(row[1]))
    labels = _labels(rows, outside, list(stacks))
    return Frame(
        modules=tuple(labels[row] for row in rows),
        outside=tuple(labels[row] for row in outside),
        layers=layers,
        experts=experts,
        cells={t: (labels[stack, module], layer) for t, (stack, module, layer) in found.items()},
    )


def _rank(module: str) -> tuple[int, int, int]:
    last = module.removesuffix(".bias")
    if _NORM.search(last):
        return 2, 0, 0
    block = 0 if _ATTENTION.search(last) else 1
    flow = next((i for i, word in enumerate(_FLOW) if word in last), len(_FLOW))
    return block, 0 if _ROUTER.search(last) else 1, flow


def _outside_rank(name: str) -> int:
    weight = f"{name}.weight"
    return 0 if is_embedding(weight) else 2 if is_head(weight) else 1


def _labels(
    rows: list[tuple[str, str]], outside: list[tuple[str, str]], stacks: list[str]
) -> dict[tuple[str, str], str]:
    """Return a short label for each (stack, module), unique among rows and among those outside."""
    heads = [stack.split(".")[0] for stack in stacks]
    labels: dict[tuple[str, str], str] = {}
    for stack in ["", *stacks]:
        group = [row for row in rows if row[0] == stack] if stack else outside
        short = _shortest([module for _, module in group])
        prefix = ""
        if stack and len(stacks) > 1:
            head = stack.split(".")[0]
            prefix = (head if heads.count(head) == 1 else stack.rsplit(".", 2)[0]) + " "
        labels |= {row: prefix + short[row[1]] for row in group}
    return labels


def _shortest(modules: list[str]) -> dict[str, str]:
    """Return each module's fewest last parts that no other has."""
    parts = {m: re.findall(r"experts?\.\*\.[^.]+(?:\.bias)?|[^.]+(?:\.bias)?", m) for m in modules}
    short = {}
    for module, pieces in parts.items():
        for count in range(1, len(pieces) + 1):
            label = ".".join(pieces[-count:])
            if sum(".".join(other[-count:]) == label for other in parts.values()) == 1:
                break
        short[module] = label
    return short
