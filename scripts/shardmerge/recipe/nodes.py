"""YAML that remembers its lines, so that every error can say where."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import yaml

from shardmerge.base.errors import UserError, misspelt, shortened
from shardmerge.base.findings import Finding

#: Aliases can blow a small file up; no real recipe comes near this.
MAX_NODES = 100_000
#: Characters of a file.
MAX_LENGTH = 500_000
#: Characters of a number or another value that is not a text.
_MAX_SCALAR = 100
_TAGS = "tag:yaml.org,2002:"
_PYTHON = "tag:yaml.org,2002:python"
_MERGE = "tag:yaml.org,2002:merge"
_HALF = re.compile(r"[\ud800-\udfff]")
_TEXT = "tag:yaml.org,2002:str"
#: What a text that is not YAML shows, and what to do about it; the first that is found counts.
_ADVICE = (
    (re.compile(r"^\s*```"), "Take out the marks of the code block (```)."),
    (re.compile(r"^ *\t"), "Indent with spaces: YAML takes no tabs there."),
    (re.compile(r"^\s+---\s*$"), "`---` between documents must be at the start of its line."),
)
#: Of a value that is no mapping, or of one without a repeated key.
_NONE: Mapping[str, UserError] = MappingProxyType({})
_INDENTATION = "Check the indentation of this line and of those before it."


@dataclass(frozen=True)
class Node:
    """A YAML value and its place.

    Args:
        value: ``dict`` of str to Node, ``list`` of Node, or a scalar.
        file: Name for messages.
        line: Counted from 1.
        warnings: What is odd but allowed; all nodes of a file share one list.
        repeated: Errors about the keys of a mapping that stand in it more than once.
    """

    value: Any
    file: str
    line: int
    warnings: list[Finding] = field(compare=False, repr=False)
    repeated: Mapping[str, UserError] = field(default_factory=dict, compare=False, repr=False)

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def error(self, message: str, hint: str | None = None) -> UserError:
        """Return an error at this place (to raise)."""
        return UserError(message, self.where, hint)

    def warn(self, check: str, message: str) -> None:
        """Note what is odd but allowed at this place; ``check`` is a key of ``CHECKS``."""
        self.warnings.append(Finding(check, message, self.where))

    def mapping(
        self,
        what: str,
        known: tuple[str, ...] | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ) -> dict[str, Node]:
        """Return the value as a mapping of the known keys.

        Another key is passed over with a warning, as mergekit does, unless it is surely a
        misspelling of a known one. It may stand more than once, as recipes that define constants
        under such a key have it.

        Args:
            what: It is, for messages.
            known: Keys that it may have, or None for any.
            elsewhere: Of keys that mean something at another place, where that is.

        Raises:
            UserError: If it is no mapping, a key is misspelt, or a known one is given twice.
        """
        if not isinstance(self.value, dict):
            raise self.error(f"{what} must be a mapping of keys to values, not {self.kind}")
        for key, twice in self.repeated.items():
            if known is None or key in known:
                raise twice
        if known is None:
            return self.value
        for key, node in self.value.items():
            if key in known:
                continue
            if near := misspelt(key, known):
                raise node.error(
                    f"unknown key {key!r} in {what}",
                    f"Did you mean {near!r}? mergekit ignores unknown keys: without the line "
                    "the model is the same.",
                )
            place = f": {elsewhere[key]}" if elsewhere and key in elsewhere else ""
            node.warn("ignored-key", f"{key!r} in {what} is ignored, as mergekit does{place}")
        return {key: node for key, node in self.value.items() if key in known}

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
        UserError: If the text is not YAML or has a Python tag.
    """
    if len(text) > MAX_LENGTH:
        raise UserError(f"has {len(text)} characters; a recipe may have {MAX_LENGTH}", file)
    lines = text.splitlines(keepends=True)
    try:
        reader = _Reader(text, file)
        while reader.loader.check_node():
            node = reader.loader.get_node()
            if isinstance(node, yaml.ScalarNode) and not node.value:
                continue
            source = "".join(lines[node.start_mark.line : node.end_mark.line + 1])
            yield reader.convert(node), source.split("\n---")[0].rstrip() + "\n"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"has a character U+{ord(text[error.position]):04X}, which YAML does not take",
            f"{file}:{line}",
            'Take it out, or write it as an escape in double quotes, such as "\\x07".',
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = getattr(error, "problem", None) or "is not YAML"
        context = getattr(error, "context", None)
        near = lines[max(0, mark.line - 1) : mark.line + 1] if mark else []
        found = (advice for sign, advice in _ADVICE if any(sign.match(line) for line in near))
        raise UserError(
            f"{problem} ({context})" if context else problem, where, next(found, _INDENTATION)
        ) from None
    except RecursionError:
        raise UserError("is nested too deeply", file) from None


class _Reader:
    """Makes nodes of what YAML's parser finds in one file."""

    def __init__(self, text: str, file: str) -> None:
        self.loader = yaml.SafeLoader(text)
        self.loader.name = file
        self._file = file
        self._budget = MAX_NODES
        self._warnings: list[Finding] = []
        #: Of mappings, by identity: how many of their first pairs are from ``<<``.
        self._merged: dict[int, int] = {}

    def convert(self, node: yaml.Node) -> Node:
        self._budget -= 1
        line = node.start_mark.line + 1
        if self._budget < 0:
            raise UserError(f"holds more than {MAX_NODES} values", f"{self._file}:{line}")
        self._check_tag(node)
        if isinstance(node, yaml.MappingNode):
            table, repeated = self._table(node)
            return self._node(table, line, repeated)
        if isinstance(node, yaml.SequenceNode):
            return self._node([self.convert(n) for n in node.value], line)
        value = self._scalar(node)
        if value is not None and not isinstance(value, (str, bool, int, float)):
            value = node.value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{node.value!r} is not a finite number", f"{self._file}:{line}")
        return self._node(value, line)

    def _check_tag(self, node: yaml.Node) -> None:
        if not node.tag.startswith(_TAGS) or node.tag.startswith(_PYTHON):
            raise UserError(
                f"the tag {shortened(node.tag)} is not known here",
                f"{self._file}:{node.start_mark.line + 1}",
            )

    def _scalar(self, node: yaml.Node) -> Any:
        """Return what PyYAML makes of a scalar, such as a number of ``1_000``."""
        self._check_tag(node)
        where = f"{self._file}:{node.start_mark.line + 1}"
        broken = UserError(
            f"{shortened(node.value)} cannot be read as YAML's `{node.tag.removeprefix(_TAGS)}`",
            where,
            "Put it in quotes if it is a text.",
        )
        if node.tag != _TEXT and len(node.value) > _MAX_SCALAR:
            raise broken
        try:
            value = self.loader.construct_object(node)
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError, IndexError):
            raise broken from None
        if isinstance(value, str) and _HALF.search(value):
            raise UserError(f"{shortened(value)} holds one half of a character", where)
        return value

    def _flatten(self, node: yaml.MappingNode) -> None:
        """Put the pairs that ``<<`` takes from other mappings before a mapping's own."""
        count = 0
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            for taken in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(taken, yaml.MappingNode):
                    self._flatten(taken)
                    count += len(taken.value)
        if count > MAX_NODES:
            where = f"{self._file}:{node.start_mark.line + 1}"
            raise UserError(f"holds more than {MAX_NODES} values", where)
        self.loader.flatten_mapping(node)

    def _table(self, node: yaml.MappingNode) -> tuple[dict[str, Node], dict[str, UserError]]:
        """Return a mapping by key, the last value of each, and errors about repeated keys."""
        if id(node) not in self._merged:  # an alias comes here again, already flattened
            own = sum(key.tag != _MERGE for key, _ in node.value)
            self._flatten(node)
            self._merged[id(node)] = len(node.value) - own
        table: dict[str, Node] = {}
        given: dict[str, int] = {}
        repeated: dict[str, UserError] = {}
        for number, (key_node, value_node) in enumerate(node.value):
            line = key_node.start_mark.line + 1
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                what = key_node.value if isinstance(key_node, yaml.ScalarNode) else key_node.id
                raise UserError(f"the key {shortened(what)} must be a text", f"{self._file}:{line}")
            if key in given:
                repeated[key] = UserError(
                    f"the key {key!r} is given twice, first in line {given[key]}",
                    f"{self._file}:{line}",
                    "Remove one of the two; mergekit would use this one.",
                )
            if number >= self._merged[id(node)]:
                given[key] = line
            # A nested block starts a line later; errors about a key point at the key.
            inner = self.convert(value_node)
            table[key] = self._node(inner.value, line, inner.repeated)
        return table, repeated

    def _node(self, value: Any, line: int, repeated: Mapping[str, UserError] = _NONE) -> Node:
        return Node(value, self._file, line, self._warnings, repeated)
