"""Which tensors of a model are those of another, whatever their names and shapes are in its files.

Both are brought to the tensors that a running model has (``architecture.layouts``); what is the
same there is taken as the other model has it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from shardmerge.algebra import pieces
from shardmerge.algebra.pieces import Arrangement, Patch
from shardmerge.base.dtypes import DTYPES
from shardmerge.compose.architecture import layouts
from shardmerge.compose.architecture.text_part import has_other_parts, is_text_into
from shardmerge.compose.folders import main_tensors
from shardmerge.compose.models import Entry, Model
from shardmerge.compose.relaid_model import RelaidModel
from shardmerge.compose.text_model import ExtendedModel, text_model

#: What checkpoints of a model without its head lack in front of every name.
_PREFIXES = ("model.", "transformer.", "bert.", "roberta.", "distilbert.", "gpt_neox.", "backbone.")

#: Shapes of tensors by name.
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fit:
    """A model as it is merged with others.

    Args:
        model: The model, in the layout of the one that the output follows.
        names: Its tensors by the names that they have there.
        lacks: The other's tensors that are of parts which it does not have: it is a text model.
        pair: Where one of the two is a text model: that, and the other's text decoder.
    """

    model: Model
    names: Mapping[str, str]
    lacks: Collection[str] = ()
    pair: tuple[Model, Model] | None = None


class Pattern:
    """The model whose layout others are brought to.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._text: Pattern | None = None
        self._meanings: dict[layouts.StorageLayout, _Meaning] = {}

    def fit(self, model: Model) -> Fit:
        """Return a model in this layout, as far as it is known how."""
        table, like = _main(model), self._table
        if table == like:
            return Fit(model, self._names)
        if table.keys() != like.keys() and is_text_into(table, like):
            return self._fit_text(model)
        if table.keys() <= like.keys() and not any(_turned(table, like)):
            return Fit(model, {name: name for name in table})
        own = layouts.layout_of(model.config)
        meaning = _Meaning(table, own, (*own.converters, *self._layout.converters))
        theirs = self._meaning(own)
        names, parts = _matched(meaning, theirs)
        if not parts:
            return Fit(model, names)
        relaid = RelaidModel(model, parts)
        new = {own: name for name, own in names.items()}
        return Fit(relaid, {new.get(own, own): own for own in _main(relaid)})

    @cached_property
    def _table(self) -> Mapping[str, Entry]:
        return _main(self.model)

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """The model's own tensors by their own names."""
        return dict(zip(self._table, self._table, strict=True))

    def _fit_text(self, model: Model) -> Fit:
        """Return a text model in a layout that has other parts too, or the other way round."""
        if not has_other_parts(self.model.table):
            decoder = text_model(model)
            return replace(self.fit(decoder), pair=(self.model, decoder))
        if self._text is None:
            self._text = Pattern(text_model(self.model))
        view, own = self._text.model, self._text.model.part.own
        found = self._text.fit(model)
        names = {own.get(name, name): full for name, full in found.names.items()}
        more = {
            found.names[name]: own[name]
            for name, rows in view.cut.items()
            if name in found.names and found.model.table[found.names[name]].shape[0] == rows
        }
        fitted = ExtendedModel(found.model, self.model, more) if more else found.model
        lacks = self.model.table.keys() - set(own.values())
        return Fit(fitted, names, frozenset(lacks), (model, view))

    @cached_property
    def _layout(self) -> layouts.StorageLayout:
        return layouts.layout_of(self.model.config)

    def _meaning(self, other: layouts.StorageLayout) -> _Meaning:
        if other not in self._meanings:
            converters = (*self._layout.converters, *other.converters)
            self._meanings[other] = _Meaning(self._table, self._layout, converters)
        return self._meanings[other]


@dataclass(frozen=True)
class _Meaning:
    """A model's tensors as those that it has when it runs.

    Args:
        table: As they are stored.
        layout: Of the model.
        converters: Its own, and those of the model that it is merged with.
    """

    table: Mapping[str, Entry]
    layout: layouts.StorageLayout
    converters: Iterable[layouts.Converter] = field(default=())

    @cached_property
    def _running(self) -> dict[str, str]:
        """The stored name of each tensor whose shape stays, by the name that it gets."""
        return {new: name for name, new in self.layout.renamed(self.table).items()}

    @cached_property
    def made(self) -> dict[str, Arrangement]:
        """What other tensors are made of."""
        shapes = {new: self.table[name].shape for new, name in self._running.items()
                  if DTYPES[self.table[name].dtype].floating}  # fmt: skip
        found = layouts.converted(shapes, dict.fromkeys(self.converters))
        return {name: pieces.by_operand(made, self._running) for name, made in found.items()}

    @cached_property
    def same(self) -> dict[str, str]:
        """The stored name of what is not part of anything, by the name that it gets."""
        used = {name for made in self.made.values() for name in made.operands()}
        return {new: name for new, name in self._running.items() if name not in used}

    @property
    def all(self) -> list[str]:
        """All tensors that the running model has, in an order that files decide."""
        return [*self.made, *self.same]

    def arrangement(self, name: str) -> Arrangement:
        """Return what a tensor is made of, from the stored ones."""
        own = self.same.get(name)
        return self.made[name] if own is None else pieces.entire(own, self.table[own].shape)

    def has_all(self, made: Arrangement) -> bool:
        """Whether an arrangement takes its operands whole."""
        return all(one.sizes == self.table[one.operand].shape for one in made.pieces)

    def __contains__(self, name: str) -> bool:
        return name in self.same or name in self.made


def _main(model: Model) -> Mapping[str, Entry]:
    """Return a model's tensors that are of none of its folders."""
    table, names = model.table, main_tensors(model)
    return table if len(names) == len(table) else {name: table[name] for name in names}


def _matched(model: _Meaning, like: _Meaning) -> tuple[dict[str, str], dict[str, Arrangement]]:
    """Return which tensors of a model are those of another.

    Returns:
        Those with their shape: the other's name to the model's own, all that match nothing too;
        and what makes others, by the other's name.
    """
    outer = _best(model.all, like)
    names: dict[str, str] = {}
    pairs: dict[str, str] = {}
    for name in model.all:
        if (there := outer(name)) in like:
            pairs[there] = name
    shared: dict[str, Arrangement] = {}
    turned = _turns(pairs, model, like)
    for there, name in pairs.items():
        if there in like.same and name in model.same and there not in turned:
            names[like.same[there]] = model.same[name]
            continue
        made, wanted = model.arrangement(name), like.arrangement(there)
        made = pieces.transpose(made, 1, 2) if there in turned else made
        renamed = there not in turned and pieces.is_alike(made, wanted)
        if renamed and model.has_all(made) and like.has_all(wanted):
            both = zip(wanted.pieces, made.pieces, strict=True)
            names |= {theirs.operand: own.operand for theirs, own in both}
        elif made.shape == wanted.shape and 0 not in made.shape:
            shared[there] = made
    parts = dict(_parts(shared, like))
    used = {*names.values(), *(one for made in parts.values() for one in made.operands())}
    left = (own for own in model.table if own not in used and own not in names)
    return _ordered({**names, **{own: own for own in left}}, model.table), parts


def _ordered(names: Mapping[str, str], table: Iterable[str]) -> dict[str, str]:
    """Return names in the order of the model's own."""
    new = {own: name for name, own in names.items()}
    return {new[own]: own for own in table if own in new}


def _parts(shared: Mapping[str, Arrangement], like: _Meaning) -> Iterator[tuple[str, Arrangement]]:
    """Yield the tensors of another model that a model has all of, and what makes them."""
    boxes: dict[str, list[Patch]] = {}
    for there in shared:
        for own, found in pieces.invert(like.arrangement(there), there).items():
            boxes.setdefault(own, []).extend(found)
    for own, found in boxes.items():
        whole = Arrangement(like.table[own].shape, tuple(found))
        if whole.is_full:
            yield own, pieces.compose(whole, shared.__getitem__)


def _best(names: Iterable[str], like: _Meaning) -> Callable[[str], str]:
    """Return how a model's names become the other's: an outer prefix more or less, or none."""
    names = list(names)
    kinds: list[Callable[[str], str]] = [lambda name: name]
    if all(name in like for name in names):
        return kinds[0]
    for prefix in _PREFIXES:
        kinds.append(prefix.__add__)
        kinds.append(lambda name, prefix=prefix: name.removeprefix(prefix))
    return max(kinds, key=lambda kind: sum(kind(name) in like for name in names))


def _turned(table: Mapping[str, Entry], like: Mapping[str, Entry]) -> Iterator[str]:
    """Yield the tensors of a name that have their last two axes exchanged."""
    for name, entry in table.items():
        there = like[name].shape
        if there != entry.shape and layouts.may_turn(name, entry.shape, there):
            yield name


def _turns(pairs: Mapping[str, str], model: _Meaning, like: _Meaning) -> set[str]:
    """Return which tensors are the other's with their last two axes exchanged.

    Square ones do not show it: they are as the others of the model.
    """
    either = {}
    for there, name in pairs.items():
        have, want = model.arrangement(name).shape, like.arrangement(there).shape
        if len(have) == 3 and layouts.may_turn(there, have, want):
            either[there] = have != want
    return set(either) if any(either.values()) else set()
