"""Recipes with gaps: ``${name}`` stands for a value, and filling all of them makes a recipe.

What is filled in are values and never text: whatever a value holds, it is read back as itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.recipe.nodes import Node, load_documents
from shardmerge.recipe.recipe import folder_name

#: A gap as people write it. Within brackets YAML would take its braces for its own.
_GAP = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_-]*)\}")
#: Characters of no meaning, which stand around a gap's name while the text is YAML.
_BEGIN, _END = "\ue000", "\ue001"
_MARKED = re.compile(f"{_BEGIN}(.*?){_END}")


class Template:
    """A recipe with gaps.

    Args:
        text: The YAML.
        path: Of its file: for messages, and the name of a document that has none.

    Raises:
        UserError: If it is no YAML, or has no gap.
    """

    def __init__(self, text: str, path: str) -> None:
        if _BEGIN in text or _END in text:
            raise UserError("has characters of the private area U+E000", path, "Take them out.")
        self.path = path
        marked = _GAP.sub(rf"{_BEGIN}\1{_END}", text)
        self._documents = [node for node, _ in load_documents(marked, path)]
        #: Name of each gap, with where it stands first.
        self.gaps: dict[str, Node] = {}
        for document in self._documents:
            for name, node in _gaps(document):
                self.gaps.setdefault(name, node)

    def check(self, names: Mapping[str, Any] | set[str], where: str) -> None:
        """Make sure that gaps and variables are the same.

        Args:
            names: Of the variables.
            where: What to say of them in errors.

        Raises:
            UserError: If a gap has no variable, or a variable no gap.
        """
        for name, node in self.gaps.items():
            if name not in names:
                message = f"`${{{name}}}` is no variable of the sweep"
                raise node.error(message, did_you_mean(name, names))
        for name in names:
            if name not in self.gaps:
                hint = did_you_mean(name, self.gaps) or f"Write `${{{name}}}` where it varies."
                raise UserError(f"`${{{name}}}` is not in {self.path}", f"{where}.{name}", hint)

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the recipe in which each gap has its value.

        Args:
            values: Of all gaps.

        Raises:
            UserError: If a value cannot stand where its gap is.
        """
        return written_recipe(
            [_filled(document, values) for document in self._documents], self.path
        )


def written_recipe(documents: Sequence[Any], path: str) -> str:
    """Return documents as a recipe; one without a name has that of the sweep's file.

    Args:
        documents: As data.
        path: Of the sweep's recipe.
    """
    import yaml

    default = folder_name(Path(path).stem)
    for document in documents:
        # random numbers follow the name, so that it must not follow the trial's file
        if isinstance(document, dict) and document.get("name") is None:
            document.pop("name", None)
            document |= {"name": default} | {k: document.pop(k) for k in list(document)}
    return yaml.dump_all(
        documents, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=100,
        default_flow_style=None,
    )  # fmt: skip


def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes a value that stands at several places each time, without anchors."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return Dumper


def _gaps(node: Node) -> Iterator[tuple[str, Node]]:
    """Yield the gaps within a value."""
    if isinstance(node.value, dict):
        for key, inner in node.value.items():
            if _BEGIN in key:
                name = _MARKED.sub(r"${\1}", key)
                raise inner.error(f"{name} stands for a key; it can stand for values only")
            yield from _gaps(inner)
    elif isinstance(node.value, list):
        for inner in node.value:
            yield from _gaps(inner)
    elif isinstance(node.value, str):
        yield from ((name, node) for name in _MARKED.findall(node.value))
        if "${" in node.value:
            hint = "A variable's name has letters, digits, `_` and `-`: `${weight_1}`."
            raise node.error(f"{node.value!r} has a `${{` that is no variable", hint)


def _filled(node: Node, values: Mapping[str, Any]) -> Any:
    if isinstance(node.value, dict):
        return {key: _filled(inner, values) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [_filled(inner, values) for inner in node.value]
    if not isinstance(node.value, str):
        return node.value
    if whole := _MARKED.fullmatch(node.value):
        return values[whole[1]]

    def text(match: re.Match[str]) -> str:
        value = values[match[1]]
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            message = f"`${{{match[1]}}}` stands within a text, so it must be a text or a number"
            raise node.error(message)
        return str(value)

    return _MARKED.sub(text, node.value)
