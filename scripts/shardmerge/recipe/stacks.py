"""A document's ``stack``: runs of layers, told shortly, that are written out as ``slices``.

mergekit has no such key. So a document with it is replaced by one with plain slices before it is
read: what is planned, written beside the model and put on its card is the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from shardmerge.base.digest import digest
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.runs import Run, joined_runs, layers_of, number_of, plain_data, whole_number

#: Slices of a document.
MAX_SLICES = 4096
_DIGESTS = 1 << 256


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True)
class _Kind:
    """A kind of entry: its own keys, what makes slices, whether those that go on are joined."""

    keys: tuple[str, ...]
    write: Callable[[dict[str, Node], Node], Iterator[tuple[Run, ...]]]
    joins: bool = False


def written_out(node: Node, text: str) -> tuple[Node, str]:
    """Return a document with its ``stack`` as ``slices``, and its text; others as they are.

    Args:
        node: The document.
        text: Its source text.

    Raises:
        UserError: For any mistake in the stack.
    """
    if not isinstance(node.value, dict) or "stack" not in node.value:
        return node, text
    stack = node.value["stack"]
    for key in ("models", "slices", "modules"):
        if key in node.value:
            raise node.value[key].error(f"a document has either `stack` or `{key}`")
    slices: list[Node] = []
    for entry in stack.sequence("`stack`"):
        for piece in _slices(entry):
            slices.append(_node(_slice_of(piece, node), entry))
            if len(slices) > MAX_SLICES:
                raise entry.error(f"the stack has more than {MAX_SLICES} slices")
    if not slices:
        raise stack.error("`stack` is empty")
    made = replace(stack, value=slices)
    table = {("slices" if k == "stack" else k): v for k, v in node.value.items()}
    table["slices"] = made
    changed = replace(node, value=table)
    style = {"sort_keys": False, "default_flow_style": None, "allow_unicode": True, "width": 100}
    dumped = yaml.dump(plain_data(changed), Dumper=_Dumper, **style)
    return changed, dumped


def _slices(entry: Node) -> Iterator[tuple[Run, ...]]:
    if not isinstance(entry.value, dict):
        raise entry.error(f"an entry of `stack` must be a mapping, not {entry.kind}")
    names = [name for name in _KINDS if name in entry.value]
    if len(names) != 1:
        wanted = ", ".join(f"`{name}`" for name in _KINDS)
        raise entry.error(f"an entry of `stack` has exactly one of {wanted}")
    kind = _KINDS[names[0]]
    for key, value in entry.value.items():
        if key not in (*names, *kind.keys):
            known = ", ".join(f"`{k}`" for k in kind.keys)
            raise value.error(f"unknown key {key!r} beside `{names[0]}`", f"It may have {known}.")
    made = kind.write(entry.value, entry)
    yield from joined_runs(made) if kind.joins else made


def _plain_layers(table: dict[str, Node], entry: Node) -> Iterator[tuple[Run, ...]]:
    """Layers of one model: once, each several times, or twice with an overlap."""
    run = layers_of(entry)
    copies = whole_number(table.get("repeat"), "`repeat`", 1, least=1)
    block = whole_number(table.get("block"), "`block`", 1, least=1)
    scales = _scales(table)
    if "drop" in table:
        drop = whole_number(table["drop"], "`drop`", 0, least=0)
        if copies > 1 or scales or drop >= run.count:
            raise table["drop"].error(
                "`drop` must be less than the layers that there are, without `repeat` and `scale`"
            )
        yield (run.part(run.begin, run.end - drop),)
        yield (run.part(run.begin + drop, run.end),)
        return
    if copies > MAX_SLICES:
        raise table["repeat"].error(f"`repeat` may be {MAX_SLICES} at most")
    every = table["scaled"].text("`scaled`") if "scaled" in table else "copies"
    if every not in ("copies", "all"):
        raise table["scaled"].error("`scaled` must be `copies` or `all`")
    if scales and copies == 1 and every == "copies":
        raise table["scale"].error("there are no copies to scale", "Write `scaled: all`.")
    if copies == 1:
        yield (run.scaled(scales if every == "all" else {}),)
        return
    for begin in range(run.begin, run.end, block):
        for copy in range(copies):
            part = run.part(begin, min(begin + block, run.end))
            yield (part.scaled(scales if copy or every == "all" else {}),)


def _scales(table: dict[str, Node]) -> Mapping[str, float]:
    if "scale" not in table:
        return {}
    rows = table["scale"].mapping("`scale`")
    return {name: number_of(value, f"the scale of {name!r}") for name, value in rows.items()}


def _interleaved(table: dict[str, Node], entry: Node) -> Iterator[tuple[Run, ...]]:
    """Layers of several models in turn, until all are used."""
    parts = [layers_of(part) for part in table["interleave"].sequence("`interleave`")]
    block = whole_number(table.get("block"), "`block`", 1, least=1)
    rounds = max((-(-part.count // block) for part in parts), default=0)
    if rounds * len(parts) > MAX_SLICES:
        raise entry.error(f"`interleave` makes more than {MAX_SLICES} slices")
    for turn in range(rounds):
        for part in parts:
            begin = part.begin + turn * block
            if begin < part.end:
                yield (part.part(begin, min(begin + block, part.end)),)


def _averaged(table: dict[str, Node], entry: Node) -> Iterator[tuple[Run, ...]]:
    """Two runs of layers, the last of the first one averaged with the first of the second one."""
    parts = [layers_of(part) for part in table["average"].sequence("`average`")]
    if len(parts) != 2 or "overlap" not in table:
        raise entry.error("`average` takes two runs of layers, and `overlap`: how many they share")
    first, second = parts
    overlap = whole_number(table["overlap"], "`overlap`", 0, least=1)
    if overlap > min(first.count, second.count):
        raise table["overlap"].error("`overlap` is more than the layers of one of the two")
    if overlap < first.count:
        yield (first.part(first.begin, first.end - overlap),)
    yield (
        first.part(first.end - overlap, first.end),
        second.part(second.begin, second.begin + overlap),
    )
    if overlap < second.count:
        yield (second.part(second.begin + overlap, second.end),)


def _shuffled(table: dict[str, Node], entry: Node) -> Iterator[tuple[Run, ...]]:
    """Each layer from one of several models, at random: in order, shuffled, or drawn too."""
    parts = [layers_of(part) for part in table["shuffle"].sequence("`shuffle`")]
    if not parts or len({part.count for part in parts}) > 1:
        raise table["shuffle"].error("all models of a `shuffle` give the same number of layers")
    order = table["order"].text("`order`") if "order" in table else "kept"
    if order not in _ORDERS:
        known = ", ".join(f"`{name}`" for name in _ORDERS)
        raise table["order"].error(f"`order` must be one of {known}")
    seed = whole_number(table.get("seed"), "`seed`", 0, least=0)
    total = sum(part.weight for part in parts)
    if parts[0].count > MAX_SLICES or total <= 0:
        raise entry.error(f"`shuffle` takes {MAX_SLICES} layers at most, and a weight above 0")
    for number, place in enumerate(_ORDERS[order](parts[0].count, seed)):
        left = _chance(seed, "model", number) * total
        for part in parts:
            left -= part.weight
            if left < 0 or part is parts[-1]:
                yield (part.part(part.begin + place, part.begin + place + 1),)
                break


def _permuted(count: int, seed: int) -> list[int]:
    return sorted(range(count), key=lambda place: _chance(seed, "order", place))


def _drawn(count: int, seed: int) -> list[int]:
    # a chance may be rounded to 1
    return [min(int(_chance(seed, "place", n) * count), count - 1) for n in range(count)]


#: Which layers a shuffle takes, by what `order` says.
_ORDERS: Mapping[str, Callable[[int, int], Iterable[int]]] = {
    "kept": lambda count, seed: range(count),
    "random": _permuted,
    "drawn": _drawn,
}


def _chance(seed: int, what: str, number: int) -> float:
    """Return a number from 0 to 1 that depends on nothing but the arguments."""
    return int(digest([seed, what, number]), 16) / _DIGESTS


def _slice_of(runs: tuple[Run, ...], document: Node) -> dict[str, Any]:
    """Return a slice as mergekit writes it."""
    method = document.value["merge_method"].value if "merge_method" in document.value else None
    given = document.value.get("parameters")
    has_weight = given is not None and isinstance(given.value, dict) and "weight" in given.value
    sources = []
    for run in runs:
        if run.scales and method != "passthrough":
            raise run.node.error("`scale` needs `merge_method: passthrough`")
        if len(runs) > 1 and method != "linear":
            raise run.node.error(
                "an average of layers needs `merge_method: linear`",
                "It takes other layers as they are, with a weight of 1.",
            )
        parameters = dict(run.parameters)
        if method == "linear" and (len(runs) > 1 or not has_weight):
            parameters.setdefault("weight", 1.0 / len(runs))
        if run.scales:
            rules = [{"filter": name, "value": value} for name, value in run.scales.items()]
            parameters["scale"] = [*rules, {"value": 1.0}]
        source = {"model": run.model, "layer_range": [run.begin, run.end]}
        sources.append(source | ({"parameters": parameters} if parameters else {}))
    return {"sources": sources}


def _node(value: Any, like: Node) -> Node:
    """Return plain data as nodes at the place of another."""
    if isinstance(value, dict):
        value = {key: _node(inner, like) for key, inner in value.items()}
    elif isinstance(value, list):
        value = [_node(inner, like) for inner in value]
    return replace(like, value=value, repeated={})


_KINDS: Mapping[str, _Kind] = {
    "model": _Kind(
        ("layers", "parameters", "repeat", "block", "scale", "scaled", "drop"), _plain_layers
    ),
    "interleave": _Kind(("block",), _interleaved, joins=True),
    "average": _Kind(("overlap",), _averaged),
    "shuffle": _Kind(("seed", "order"), _shuffled, joins=True),
}
