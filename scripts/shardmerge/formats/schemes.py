"""What the config of compressed-tensors says of weights: the groups of ``config_groups``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.formats.interface import Announcement, short
from shardmerge.formats.scaled import CHANNEL, TENSOR, BlockShape

#: Formats of compressed-tensors whose tensors are stored sparse or reordered for one kernel.
_UNREADABLE = ("sparse", "marlin", "24")


@dataclass(frozen=True)
class Scheme:
    """How a group of weights is quantised.

    Args:
        kind: ``int`` or ``float``.
        bits: Of a code.
        block: Height and width that a scale is for; 0 is all of the dimension.
        symmetric: Whether the zero is in the middle and not stored.
    """

    kind: str
    bits: int
    block: BlockShape
    symmetric: bool


def weight_schemes(said: Announcement) -> list[Scheme]:
    """Return the schemes that a config of compressed-tensors has for weights.

    Raises:
        UserError: If it is not as that format's documents say, or names a form that is not read.
    """
    sparsity = said.settings.get("sparsity_config") or {}
    forms = [said.settings.get("format"), _table(sparsity, said).get("format")]
    for form in forms:
        if isinstance(form, str) and any(word in form for word in _UNREADABLE):
            raise UserError(
                f"has weights in the format {short(form)}, which cannot be read", said.where
            )
    groups = _table(said.settings.get("config_groups") or {}, said)
    found = (_table(group, said).get("weights") for _, group in sorted(groups.items()))
    return list(dict.fromkeys(_scheme(_table(w, said), said) for w in found if w is not None))


def _table(value: Any, said: Announcement) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"has {short(value)} where a table of settings belongs", said.where)
    return value


def _scheme(weights: Mapping[str, Any], said: Announcement) -> Scheme:
    inner = Announcement(said.method, weights, said.where)
    bits = inner.integer("num_bits", 8)
    kind = inner.text("type") or "int"
    strategy = inner.text("strategy") or ("group" if weights.get("group_size") else "tensor")
    return Scheme(kind, bits, _block(strategy, inner), inner.flag("symmetric", True))


def _block(strategy: str, weights: Announcement) -> BlockShape:
    size = weights.integer("group_size", 0, 0, -1)
    if strategy in ("group", "tensor_group"):
        return (1, size) if size > 0 else CHANNEL
    if strategy == "block":
        shape = weights.settings.get("block_structure")
        pair = shape if isinstance(shape, list) else ()
        if len(pair) == 2 and all(type(n) is int and 0 < n < 1 << 31 for n in pair):
            return pair[0], pair[1]
    known = {"tensor": TENSOR, "channel": CHANNEL}
    if strategy not in known:
        raise UserError(
            f"has the strategy {short(strategy)} for weights, which cannot be read", weights.where
        )
    return known[strategy]
