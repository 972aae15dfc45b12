"""YAML that remembers its lines, so that every error can say where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from shardmerge.errors import UserError, did_you_mean

#: Aliases can blow a small file up; no real recipe comes near this.
MAX_NODES = 200_000
_PYTHON = "tag:yaml.org,2002:python"


@dataclass(frozen=True)
class Node:
    """A YAML value and its place.

    Args:
        value: ``dict`` of str to Node, ``list`` of Node, or a scalar.
        file: Name for messages.
        line: Counted from 1.
    """

    value: Any
    file: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def error(self, message: str, hint: str | None = None) -> UserError:
        """Return an error at this place (to raise)."""
        return UserError(message, self.where, hint)

    def mapping(self, what: str, known: tuple[str, ...] | None = None) -> dict[str, Node]:
        """Return the value as a mapping; with ``known``, refuse other keys and suggest one."""
        if not isinstance(self.value, dict):
            raise self.error(f"{what} must be a mapping of keys to values, not {self.kind}")
        for key, node in self.value.items():
            if known is not None and key not in known:
                raise node.error(f"unknown key {key!r} in {what}", did_you_mean(key, known))
        return self.value

    def sequence(self, what: str) -> list[Node]:
        """Return the value as a list of nodes."""
        if not isinstance(self.value, list):
            raise self.error(f"{what} must be a list, not {self.kind}")
        return self.value

    def text(self, what: str) -> str:
        """Return the value as a non-empty string."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error(f"{what} must be a text, not {self.kind}")
        return self.value

    @property
    def is_scalar(self) -> bool:
        return isinstance(self.value, (str, bool, int, float))

    @property
    def kind(self) -> str:
        """What the value is, for messages."""
        if isinstance(self.value, (dict, list)):
            return "a mapping" if isinstance(self.value, dict) else "a list"
        return "nothing" if self.value is None else repr(self.value)


def load_documents(text: str, file: str) -> Iterator[tuple[Node, str]]:
    """Yield every document of a YAML text with its own source text.

    Raises:
        UserError: If the text is not YAML, has a duplicate key or a Python tag.
    """
    loader = yaml.SafeLoader(text)
    loader.name = file
    budget = [MAX_NODES]
    lines = text.splitlines(keepends=True)
    try:
        while loader.check_node():
            node = loader.get_node()
            if isinstance(node, yaml.ScalarNode) and not node.value:
                continue
            source = "".join(lines[node.start_mark.line : node.end_mark.line + 1])
            yield _convert(node, loader, file, budget), source.split("\n---")[0].rstrip() + "\n"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = getattr(error, "problem", None) or "is not YAML"
        context = getattr(error, "context", None)
        raise UserError(f"{problem} ({context})" if context else problem, where) from None
    except RecursionError:
        raise UserError("is nested too deeply", file) from None


def _convert(node: yaml.Node, loader: yaml.SafeLoader, file: str, budget: list[int]) -> Node:
    budget[0] -= 1
    line = node.start_mark.line + 1
    if budget[0] < 0:
        raise UserError(f"holds more than {MAX_NODES} values", f"{file}:{line}")
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith(_PYTHON):
        raise UserError(f"the tag {node.tag!r} is not known here", f"{file}:{line}")
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        table: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node)
            place = f"{file}:{key_node.start_mark.line + 1}"
            if not isinstance(key, str):
                raise UserError(f"the key {key!r} must be a text", place)
            if key in table:
                raise UserError(f"the key {key!r} stands twice", place)
            value = _convert(value_node, loader, file, budget)
            # A nested block starts a line later; errors about a key point at the key.
            table[key] = Node(value.value, file, key_node.start_mark.line + 1)
        return Node(table, file, line)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(n, loader, file, budget) for n in node.value], file, line)
    value = loader.construct_object(node)
    if value is not None and not isinstance(value, (str, bool, int, float)):
        value = node.value
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{node.value!r} is not a finite number", f"{file}:{line}")
    return Node(value, file, line)
