"""Runs of a model's layers, as entries of a ``stack`` tell them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shardmerge.recipe.nodes import Node

_ROOT = re.compile(r"1 */ *sqrt\( *([1-9][0-9]{0,5}) *\)")
_KEYS = ("model", "layers", "parameters", "weight")


@dataclass(frozen=True)
class Run:
    """Layers of a model that follow each other.

    Args:
        model: As the recipe writes it, in plain data.
        begin, end: The first layer, and the one after the last.
        parameters: Of the source, in plain data.
        scales: Factors of tensors, by a part of their names.
        weight: Chance of the model in a shuffle, relative to the others'.
        node: Where it stands.
    """

    model: Any
    begin: int
    end: int
    parameters: Mapping[str, Any]
    node: Node = field(compare=False)
    scales: Mapping[str, float] = field(default_factory=dict)
    weight: float = field(default=1.0, compare=False)

    @property
    def count(self) -> int:
        return self.end - self.begin

    def part(self, begin: int, end: int) -> Run:
        """Return some of its layers."""
        return replace(self, begin=begin, end=end)

    def scaled(self, scales: Mapping[str, float]) -> Run:
        """Return it with factors."""
        return replace(self, scales=dict(scales))


def layers_of(node: Node) -> Run:
    """Return the run of layers that a mapping with ``model`` and ``layers`` tells.

    Raises:
        UserError: If it does not.
    """
    if not isinstance(node.value, dict) or not {"model", "layers"} <= set(node.value):
        raise node.error(
            "here stands a mapping with `model` and `layers`",
            "Write `{model: owner/name, layers: [0, 32]}` for 32 layers.",
        )
    table = node.value
    ends = table["layers"].sequence("`layers`")
    begin, end = (
        [whole_number(part, "an end of `layers`", 0, least=0) for part in ends]
        if len(ends) == 2
        else (0, 0)
    )
    if not begin < end:
        raise table["layers"].error(
            "`layers` must be two whole numbers, the first smaller",
            "Write `[0, 8]` for the layers 0 to 7.",
        )
    parameters = plain_data(table["parameters"]) if "parameters" in table else {}
    if not isinstance(parameters, dict):
        raise table["parameters"].error("`parameters` must be a mapping of keys to values")
    weight = number_of(table["weight"], "`weight`") if "weight" in table else 1.0
    if weight < 0:
        raise table["weight"].error("`weight` must not be less than 0")
    return Run(plain_data(table["model"]), begin, end, parameters, node, weight=weight)


def whole_number(node: Node | None, what: str, default: int, *, least: int) -> int:
    """Return a whole number of at least a bound, or a default where there is no node.

    Raises:
        UserError: If it is none.
    """
    if node is None:
        return default
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 63:
        raise node.error(f"{what} must be a whole number from {least} on, not {node.kind}")
    return value


def number_of(node: Node, what: str) -> float:
    """Return a number; ``1/sqrt(2)`` is one too.

    Raises:
        UserError: If it is none.
    """
    if isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node.value, str) and (found := _ROOT.fullmatch(node.value.strip())):
        return 1 / math.sqrt(int(found[1]))
    raise node.error(f"{what} must be a number, or such as `1/sqrt(2)`, not {node.kind}")


def plain_data(node: Node) -> Any:
    """Return a node as plain data."""
    if isinstance(node.value, dict):
        return {key: plain_data(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain_data(value) for value in node.value]
    return node.value


def joined_runs(slices: Iterable[tuple[Run, ...]]) -> Iterator[tuple[Run, ...]]:
    """Yield slices, those that go on where the one before ends joined with it."""
    last: tuple[Run, ...] = ()
    for piece in slices:
        if last and _follows(last, piece):
            last = (replace(last[0], end=piece[0].end),)
            continue
        if last:
            yield last
        last = piece
    if last:
        yield last


def _follows(last: tuple[Run, ...], piece: tuple[Run, ...]) -> bool:
    if len(last) != 1 or len(piece) != 1:
        return False
    # gradients begin anew in every slice
    if any(isinstance(value, list | dict) for value in last[0].parameters.values()):
        return False
    return replace(last[0], begin=last[0].end, end=piece[0].end) == piece[0]
