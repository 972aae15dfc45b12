"""Under which names and in which shapes checkpoints of one architecture are published.

``layouts.json`` is made from transformers by ``python -m tools.layouts``: how stored tensors
become those that a model holds. Two checkpoints are of one model where they become the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shardmerge.algebra import pieces
from shardmerge.algebra.pieces import Arrangement

LAYOUTS_FILE = Path(__file__).parent / "layouts.json"
#: What transformers converts for every model.
_LEGACY = "legacy"
_WEIGHT = r"\.(weight|bias)(?!\w)"


def _fused(parts: Iterable[str], whole: str) -> dict[str, Any]:
    return {
        "from": [re.escape(part) + _WEIGHT for part in parts],
        "to": [rf"{whole}.\1"],
        "steps": [["concatenate", 0]],
    }


_QKV = _fused(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.qkv_proj")
_GATE_UP = _fused(("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj")
#: Architectures with fused projections whose relatives have them apart, which transformers has no
#: tables for since it keeps them as different models.
_RELATIVES: Mapping[str, list[dict[str, Any]]] = {
    "phi3": [_QKV, _GATE_UP],
    "phi4_multimodal": [_QKV, _GATE_UP],
    "glm": [_GATE_UP],
    "glm4": [_GATE_UP],
}
#: Experts in three dimensions, which some files have with the last two exchanged.
_EXPERTS = re.compile(r"\.experts\.(?:gate_up_proj|down_proj)$")


@dataclass(frozen=True)
class Renaming:
    """Names that become others.

    Args:
        sources: What is looked for in a name; the first that is found counts.
        target: What stands there then, ``\\1`` for the first group.
        scope: Whether an outer ``model.`` is no part of what is looked at.
    """

    sources: tuple[re.Pattern[str], ...]
    target: str
    scope: bool = False

    def apply(self, name: str) -> str:
        """Return what a name becomes."""
        outer = "model." if self.scope and name.startswith("model.") else ""
        inner = name.removeprefix(outer)
        for source in self.sources:
            if match := source.search(inner):
                return outer + _replaced(inner, match, self.target)
        return name


@dataclass(frozen=True)
class Converter:
    """Tensors that become others of other shapes.

    Args:
        sources: What is looked for in the names of the parts.
        targets: What stands there in the names of the results.
        steps: Operations with their axes.
    """

    sources: tuple[re.Pattern[str], ...]
    targets: tuple[str, ...]
    steps: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class StorageLayout:
    """How a model's stored tensors become those that it holds.

    Args:
        renamings: What is done to every name, in order.
        converters: What is done then, by the first that applies.
    """

    renamings: tuple[Renaming, ...] = ()
    converters: tuple[Converter, ...] = ()

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """Return for each name what it becomes; of two that become one, neither changes."""
        found = {name: name for name in names}
        for name in found:
            for renaming in self.renamings:
                found[name] = renaming.apply(found[name])
        counts: dict[str, int] = {}
        for new in found.values():
            counts[new] = counts.get(new, 0) + 1
        return {name: new if counts[new] == 1 else name for name, new in found.items()}


def layout_of(config: Mapping[str, Any]) -> StorageLayout:
    """Return the layout of checkpoints with a configuration.

    Args:
        config: Their config.json; a stranger's.
    """
    return _layout(tuple(_root(config)), tuple(_inner(config)))


def _root(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what names a model's table: the class if it has one, else the type."""
    types = _data()["types"]
    given = config.get("architectures")
    name = given[0] if isinstance(given, list) and given else None
    kind = config.get("model_type")
    for one in (name, kind):
        if isinstance(one, str) and (one in types or one in _RELATIVES):
            yield one
            break
    base = _data()["bases"].get(kind) if isinstance(kind, str) else None
    if base and base != name:
        yield f"{base}."


def _inner(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the types of a model's parts."""
    for key in sorted(config):
        section = config[key]
        kind = section.get("model_type") if isinstance(section, Mapping) else None
        if isinstance(kind, str):
            yield kind


@cache
def _data() -> dict[str, Any]:
    return json.loads(LAYOUTS_FILE.read_text(encoding="utf-8"))


@cache
def _layout(root: tuple[str, ...], inner: tuple[str, ...]) -> StorageLayout:
    """Return a layout.

    Args:
        root: Names of tables; one that ends in a dot holds below an outer ``model.``.
        inner: Types of parts: what holds at the beginning of a name there does not hold here.
    """
    renamings: list[Renaming] = []
    converters: list[Converter] = []
    rows = [(row, kind.endswith(".")) for kind in root for row in _rows(kind.removesuffix("."))]
    rows += [(row, False) for kind in inner for row in _rows(kind) if not _anchored(row)]
    rows += [(row, False) for row in _rows(_LEGACY)]
    for row, scope in rows:
        if "unsupported" in row:
            continue
        order = sorted(row["from"], key=len, reverse=True)
        if "steps" not in row:
            sources = tuple(re.compile(one) for one in order)
            renamings.append(Renaming(sources, row["to"][0], scope))
            continue
        sources = tuple(re.compile(one) for one in row["from"])
        steps = tuple(map(tuple, row["steps"]))
        converters.append(Converter(sources, tuple(row["to"]), steps))
    return StorageLayout(tuple(renamings), tuple(dict.fromkeys(converters)))


def _rows(kind: str) -> list[dict[str, Any]]:
    data = _data()
    table = data["types"].get(kind)
    return [*(data["tables"][table] if table else ()), *_RELATIVES.get(kind, ())]


def _anchored(row: Mapping[str, Any]) -> bool:
    return any(one.startswith("^") for one in row["from"])


def converted(
    shapes: Mapping[str, tuple[int, ...]], converters: Iterable[Converter]
) -> dict[str, Arrangement]:
    """Return the tensors that others become, as arrangements of them, by name.

    Only what changes is in it. Parts of which some are missing, or do not fit, stay as they are.

    Args:
        shapes: Of all tensors, by name.
        converters: What becomes what.
    """
    found: dict[str, Arrangement] = {}
    taken: set[str] = set()
    for converter in converters:
        for parts in _groups(shapes, converter, taken):
            try:
                made = _made(parts, converter, shapes)
            except ValueError:
                continue
            if made and not made.keys() & (shapes.keys() | found.keys()):
                found |= made
                taken |= {name for row in parts.rows.values() for name in row.values()}
    return found


@dataclass
class _Parts:
    """Tensors that become one group.

    Args:
        rows: For each pattern of the parts their names by number.
        names: Of the results.
    """

    rows: dict[int, dict[int, str]]
    names: tuple[str, ...]


def _groups(
    shapes: Mapping[str, tuple[int, ...]], converter: Converter, taken: set[str]
) -> Iterable[_Parts]:
    groups: dict[tuple[str, ...], _Parts] = {}
    for name in shapes:
        if name in taken:
            continue
        for index, source in enumerate(converter.sources):
            if match := source.search(name):
                names = tuple(_replaced(name, match, target) for target in converter.targets)
                parts = groups.setdefault(names, _Parts({}, names))
                number = match[1] if match.re.groups and match[1].isdigit() else "0"
                parts.rows.setdefault(index, {})[int(number)] = name
                break
    return groups.values()


def _made(
    parts: _Parts, converter: Converter, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Arrangement]:
    """Return the tensors that a group becomes.

    Raises:
        ValueError: If some are missing or empty, or shapes do not fit.
    """
    rows = []
    for index in range(len(converter.sources)):
        row = parts.rows.get(index, {})
        if sorted(row) != list(range(len(row))) or not row:
            raise ValueError
        if any(0 in shapes[name] for name in row.values()):
            raise ValueError
        rows.append([pieces.entire(row[i], shapes[row[i]]) for i in range(len(row))])
    for name, *axes in converter.steps:
        rows = _STEPS[name](rows, len(parts.names), *axes)
    if len(rows) != len(parts.names) or any(len(row) != 1 for row in rows):
        raise ValueError
    return {name: row[0] for name, row in zip(parts.names, rows, strict=True)}


_Rows = list[list[Arrangement]]


def _stack(rows: _Rows, _: int, axis: int) -> _Rows:
    return [[pieces.stack(row, axis)] for row in rows]


def _concatenate(rows: _Rows, _: int, axis: int) -> _Rows:
    return [[pieces.concatenate([part for row in rows for part in row], axis)]]


def _chunk(rows: _Rows, count: int, axis: int) -> _Rows:
    ((part,),) = rows
    return [[one] for one in pieces.chunk(part, count, axis)]


def _transpose(rows: _Rows, _: int, first: int, second: int) -> _Rows:
    return [[pieces.transpose(part, first, second) for part in row] for row in rows]


def _as_it_is(rows: _Rows, *_: int) -> _Rows:
    raise ValueError  # shapes tell, where another model's are known (``may_turn``)


_STEPS: Mapping[str, Callable[..., _Rows]] = {
    "stack": _stack,
    "concatenate": _concatenate,
    "chunk": _chunk,
    "transpose": _transpose,
    "transpose_if_needed": _as_it_is,
}


def may_turn(name: str, have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Whether experts of one shape are those of another with their last two axes exchanged."""
    if len(have) != 3 or not _EXPERTS.search(name):
        return False
    return have == (want[0], want[2], want[1]) if len(want) == 3 else False


def _replaced(name: str, match: re.Match[str], target: str) -> str:
    if r"\1" in target:
        target = target.replace(r"\1", match[1])
    return name[: match.start()] + target + name[match.end() :]
