"""Tensors that several projections share: what each of them is called, and which rows it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.compose.architecture.layouts import Converter, layout_of
from shardmerge.compose.architecture.predictors import text_section

_NUMBER = r"(\d{1,5})"
_KIND = re.compile(r"\((?:weight\|bias)\)")
_HEADS = ("num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class FusedPart:
    """A projection within a tensor.

    Args:
        name: That it has in files that keep it apart.
        first, count: Its rows, all axes but the last taken together; None where they are unknown.
    """

    name: str
    first: int | None
    count: int | None


class FusedTensors:
    """What a configuration tells of tensors that several projections share.

    Args:
        config: Of the model; a stranger's.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        _, self._section = text_section(config)
        self._converters = [
            converter
            for converter in layout_of(config).converters
            if len(converter.targets) == 1 and converter.steps[0][0] in ("stack", "concatenate")
        ]

    def parts(self, name: str, shape: tuple[int, ...]) -> tuple[FusedPart, ...]:
        """Return the projections that share a tensor, in the order of their rows, else nothing.

        Args:
            name: Of the tensor.
            shape: Of it.
        """
        for converter in self._converters:
            target = _target(converter.targets[0], name)
            if target is not None:
                outer = name.removesuffix(target)
                sources = [_literal(one.pattern, target) for one in converter.sources]
                if all(source is not None for source in sources):
                    return tuple(self._rows(converter, outer, sources, shape))
        return ()

    def _rows(
        self, converter: Converter, outer: str, sources: Sequence[str], shape: tuple[int, ...]
    ) -> Iterator[FusedPart]:
        stacked = converter.steps[0] == ("stack", 0) and len(shape) == 3
        lengths = self._lengths(converter, len(sources), shape, stacked)
        first = 0
        for number in range(shape[0] if stacked else 1):
            for index, source in enumerate(sources):
                name = outer + source.replace(_NUMBER, str(number))
                if lengths is None:
                    yield FusedPart(name, None, None)
                    continue
                yield FusedPart(name, first, lengths[index])
                first += lengths[index]

    def _lengths(
        self, converter: Converter, count: int, shape: tuple[int, ...], stacked: bool
    ) -> list[int] | None:
        """Return the rows of each part of one expert, or of the whole; None if that is not sure."""
        height = shape[1] if stacked else shape[0]
        if stacked != (converter.steps[0][0] == "stack") or height == 0:
            return None
        if count == 1:
            return [height]
        if converter.steps[-1] != ("concatenate", 1 if stacked else 0):
            return None
        hidden = self._section.get("hidden_size")
        if len(shape) > 1 and type(hidden) is int and shape[-1] != hidden:
            return None
        if count == 2 and height % 2 == 0:
            return [height // 2] * 2
        return self._heads(height) if count == 3 else None

    def _heads(self, height: int) -> list[int] | None:
        """Return the rows of queries, keys and values."""
        queries, keys = map(self._section.get, _HEADS)
        if not all(type(n) is int and n > 0 for n in (queries, keys)):
            return None
        size, rest = divmod(height, queries + 2 * keys)
        return None if rest else [queries * size, keys * size, keys * size]


def _target(template: str, name: str) -> str | None:
    """Return how a name ends, if it is a converter's result."""
    for word in ("weight", "bias") if r"\1" in template else ("",):
        target = template.replace(r"\1", word)
        if name.endswith(target) and (target[0] == "." or name[: -len(target)][-1:] in ("", ".")):
            return target
    return None


def _literal(pattern: str, target: str) -> str | None:
    """Return what a pattern matches, with ``_NUMBER`` for numbers; None if it has choices."""
    word = target.rpartition(".")[2]
    text = _KIND.sub(word, pattern.removesuffix(r"(?!\w)")).replace(_NUMBER, "\0")
    text = text.replace("\\", "")
    return None if re.search(r"[][()*+?|^$]", text) else text.replace("\0", _NUMBER)
