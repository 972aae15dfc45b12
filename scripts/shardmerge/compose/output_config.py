"""What a merged model's config.json says otherwise than its source's: the layers that it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardmerge.base.digest import canonical_json
from shardmerge.base.errors import UserError, shortened
from shardmerge.compose.architecture import config_keys as keys
from shardmerge.compose.architecture.layer_periods import implied, untold
from shardmerge.compose.architecture.modules import modules_of
from shardmerge.compose.architecture.names import layer_of
from shardmerge.compose.architecture.predictors import behind, text_section
from shardmerge.compose.text_model import TextModel
from shardmerge.recipe.references import Reference
from shardmerge.sources.quantised import announcing_keys

if TYPE_CHECKING:
    from shardmerge.compose.composer import Composer

#: Names classes in code of a model's own.
AUTO_MAP = "auto_map"
_MISSING = object()
#: For each layer of the output, the source, the stack and the number that it was there.
_Layers = Sequence[tuple[str, str, int]]


def config_changes(composer: Composer, stage: str) -> dict[str, Any]:
    """Return the values of config.json that a build sets, by their place (``a.b``: b under a).

    Args:
        composer: Of the recipe.
        stage: That is built; its config comes from ``composer.reference_source``.

    Raises:
        UserError: If the configuration cannot say what the layers are.
    """
    changes: dict[str, Any] = {}
    for section, layers in _moved(composer, stage):
        changes |= section.changes(layers)
    for change in composer.changes(stage):
        changes |= change.values
        changes = {key: value for key, value in changes.items() if key not in change.removed}
    changes |= _without_predictors(composer, stage)
    if composer.is_untied(stage):
        changes["tie_word_embeddings"] = False
    check_finite(changes, composer.reference_source(stage))
    return changes


def config_whole(composer: Composer, stage: str) -> dict[str, Any] | None:
    """Return the config.json that a build's is made of, None if it is a source's as it stands.

    Args:
        composer: Of the recipe.
        stage: That is built.
    """
    if not composer.is_text_alone(stage):
        return None
    config = dict(composer.origin(stage).config)
    check_finite(config, composer.reference_source(stage))
    return config


def config_removed(composer: Composer, stage: str) -> list[str]:
    """Return what config.json of a build no longer says, by its place.

    That is how weights were quantised, which code of the repository to run (the code is not taken
    along), and what another architecture has no use for.

    Args:
        composer: Of the recipe.
        stage: That is built.
    """
    config = composer.origin(stage).config
    given = [*announcing_keys(config), *(key for key in (AUTO_MAP,) if key in config)]
    for change in composer.changes(stage):
        given = [key for key in given if key not in change.values]
        given += [key for key in change.removed if key not in given and _has(config, key)]
    return given


def _has(config: Mapping[str, Any], place: str) -> bool:
    for key in place.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return False
        config = config[key]
    return True


def check_finite(values: Mapping[str, Any], model: str) -> None:
    """Check that what config.json of a merged model says has a JSON that all programs read.

    Raises:
        UserError: If a value is infinite or NaN, or holds one that is.
    """
    for key, value in values.items():
        try:
            canonical_json(value)
        except ValueError:
            raise UserError(
                f"has `{key}: {shortened(value)}`, which is not finite", f"config.json of {model!r}"
            ) from None


def untold_periods(composer: Composer, stage: str) -> dict[str, Any]:
    """Return what config.json still says of layers by their numbers, but is no longer true.

    Args:
        composer: Of the recipe.
        stage: That is built.
    """
    found = {}
    for section, layers in _moved(composer, stage):
        for key in untold(section.values, [number for _, _, number in layers]):
            found[f"{section.prefix}{key}"] = section.values[key]
    return found


def _without_predictors(composer: Composer, stage: str) -> dict[str, int]:
    """Return the keys that promise layers for multi-token prediction which merging left out."""
    model = composer.model(Reference(stage))
    needed = (composer.model(Reference(name)) for name in composer.recipe.needed(stage))
    lost = any(not one.kept for needs in needed for one in needs.assembly.predictors)
    if not lost or any(behind(name, model.layer_counts) for name in model.table):
        return {}
    config = composer.origin(stage).config
    prefix, section = text_section(config)
    return {prefix + key: 0 for key in keys.PREDICTORS if section.get(key)}


def _moved(composer: Composer, stage: str) -> Iterator[tuple[_Section, _Layers]]:
    """Yield the parts of the configuration whose stacks have other layers than in the source."""
    source, model = composer.reference_source(stage), composer.model(Reference(stage))
    before, after = composer.origin(stage), model
    config = before.config
    old, new = before.layer_counts, after.layer_counts
    owners = modules_of(before.table)
    for stack, count in new.items():
        if stack not in old:
            continue
        layers = [_there(composer, stage, model.layer(stack, n)) for n in range(count)]
        if [number for _, _, number in layers] == list(range(old[stack])):
            continue
        module = next(m for name, m in owners.items() if (layer_of(name) or ("",))[0] == stack)
        tensors = [name for name, owner in owners.items() if owner == module]
        yield _Section(composer, stage, config, module, source, old[stack], tensors), layers


def _there(composer: Composer, stage: str, layer: tuple[str, str, int]) -> tuple[str, str, int]:
    """Return a layer of a source by the number that it has where only the text is built."""
    origin = composer.origin(stage, layer[0])
    return (*layer[:2], origin.number(layer[2])) if isinstance(origin, TextModel) else layer


class _Section:
    """The part of a configuration that is about one stack of layers."""

    def __init__(
        self,
        composer: Composer,
        stage: str,
        config: Mapping[str, Any],
        module: str,
        source: str,
        count: int,
        tensors: Sequence[str],
    ) -> None:
        self.composer, self.stage = composer, stage
        self.source = source
        self.count = count
        self.tensors = tensors
        sections = [s for s in keys.SECTIONS.get(module, ("",)) if not s or s in config]
        self.key = sections[0]
        self.values = config[self.key] if self.key else config
        self.prefix = f"{self.key}." if self.key else ""
        self.counts = keys.COUNTS.get(module, keys.COUNT)

    def changes(self, layers: _Layers) -> dict[str, Any]:
        """Return what is set so that it has those layers."""
        found = {key: len(layers) for key in self.counts if self.values.get(key) == self.count}
        listed = [k for k in keys.PER_LAYER if len(_sized(self.values.get(k))) == self.count]
        if not (found or listed):
            raise UserError(
                f"nothing in it says that there are {self.count} layers "
                f"(looked for {', '.join(self.counts)})",
                f"config.json of {self.source!r}",
                "Its architecture is not known well enough to take layers out or put them in.",
            )
        self._check_shares()
        self._check_sharing(layers)
        found |= {key: self._per_layer(key, layers) for key in listed}
        for key in keys.CYCLES:
            if key not in listed and isinstance(self.values.get(key), list):
                found[key] = self._cycle(key, layers)
        for pair in keys.SPANS:
            found |= self._span(*pair, layers)
        if made := implied(self.values, len(layers)):
            key, values = made
            if (picked := self._per_layer(key, layers)) != values:
                found[key] = picked
        for key in keys.NUMBERS:
            if isinstance(value := self.values.get(key), list):
                found[key] = [i for i, (_, _, n) in enumerate(layers) if n in value]
        for key in keys.BY_NUMBER:
            if _is_by_number(self.values.get(key)):
                found[key] = self._by_number(key, layers)
        for key in keys.FIRST:
            if isinstance(value := self.values.get(key), int):
                found[key] = self._first(key, value, layers)
        for key in keys.LAST:
            if isinstance(value := self.values.get(key), int):
                found[key] = self._last(key, value, layers)
        return {
            self.prefix + key: value
            for key, value in found.items()
            if value != self.values.get(key, _MISSING)
        }

    def _per_layer(self, key: str, layers: _Layers) -> Any:
        """Return a list of something for each layer, from the sources that the layers are of."""
        picked = []
        for source, _, number in layers:
            own = _listed(self._own(source), key, number)
            values = own if number < len(own) else _listed(self.values, key, number)
            if number >= len(values):
                raise UserError(
                    f"`{key}` has {len(values)} entries, too few for layer {number}",
                    f"config.json of {source!r}",
                )
            picked.append(values[number])
        return "".join(picked) if isinstance(self.values.get(key), str) else picked

    def _by_number(self, key: str, layers: _Layers) -> dict[str, Any]:
        """Return an object of something for some layers, by the numbers that they have now."""
        picked = {}
        for i, (source, _, number) in enumerate(layers):
            own = self._own(source).get(key)
            if _is_by_number(own) and str(number) in own:
                picked[str(i)] = own[str(number)]
        return picked

    def _own(self, source: str) -> Mapping[str, Any]:
        """Return what another source's configuration says of this module."""
        config = self.composer.origin(self.stage, source).config
        values = config.get(self.key) if self.key else config
        return values if isinstance(values, Mapping) else {}

    def _check_shares(self) -> None:
        """Refuse layers other than they were if a tensor beside them holds a share for each."""
        shares = (t for t in self.tensors if any(part in keys.SHARES for part in t.split(".")))
        if tensor := next(shares, None):
            raise UserError(
                f"tensor {tensor!r} of {self.source!r} holds a share for each of its {self.count} "
                "layers, which cannot follow `slices`",
                self.composer.recipe.path,
                "Slices of such a model must keep all of its layers in their order.",
            )

    def _check_sharing(self, layers: _Layers) -> None:
        """Refuse other layers of those that share parameters: they follow from each other."""
        places = {layer_of(t): t for t in self.tensors if set(t.split(".")) & set(keys.SHARERS)}
        sharing = sorted(place[1] for place in places if place)
        kept = [number for _, _, number in layers if number in sharing]
        if kept != sharing[: len(kept)]:
            raise UserError(
                f"layers {', '.join(map(str, sharing))} of {self.source!r} share parameters, which "
                "cannot follow `slices` that repeat some of them or take one out before others",
                self.composer.recipe.path,
                "Keep these layers once each, from the first on; others may go or be repeated.",
            )

    def _cycle(self, key: str, layers: _Layers) -> list[Any]:
        """Return a list that is repeated as it is, or where that is not true any more, a whole."""
        picked = []
        for source, _, number in layers:
            values = _sized(self._own(source).get(key)) or self.values[key]
            picked.append(values[number % len(values)])
        values = self.values[key]
        same = all(kind == values[i % len(values)] for i, kind in enumerate(picked))
        return values if same else picked

    def _span(self, first: str, last: str, layers: _Layers) -> dict[str, int]:
        """Return from where to where layers are special now; they must still be together."""
        ends = self.values.get(first), self.values.get(last, -1)
        if not all(type(end) is int for end in ends):
            return {}
        begin, end = ends[0], ends[1] if ends[1] >= 0 else self.count - 1
        special = [i for i, (_, _, number) in enumerate(layers) if begin <= number <= end]
        if special and special[-1] - special[0] >= len(special):
            raise self._scattered(first, begin, "middle ones alone", "side by side")
        if not special:
            return {first: len(layers), last: len(layers)}
        return {first: special[0], last: special[-1]}

    def _last(self, key: str, value: int, layers: _Layers) -> int:
        """Return of how many last layers something is true; they must still be the last."""
        special = [number >= self.count - value for _, _, number in layers]
        if sorted(special) != special:
            raise self._scattered(key, value, "last", "at the end")
        return sum(special)

    def _scattered(self, key: str, value: int, which: str, place: str) -> UserError:
        return UserError(
            f"`{key}: {value}` cannot be kept: of the new layers, those that it is about are "
            f"not the {which}",
            f"config.json of {self.source!r}",
            f"Keep those layers {place}, and together.",
        )

    def _first(self, key: str, value: int, layers: _Layers) -> int:
        """Return of how many first layers something is true; they must still be the first."""
        if value >= self.count:
            return max(len(layers), value - self.count + len(layers))
        special = [number < value for _, _, number in layers]
        if sorted(special, reverse=True) != special:
            raise self._scattered(key, value, "first", "in front")
        return sum(special)


def _listed(config: Mapping[str, Any], key: str, number: int) -> Sequence[Any]:
    """Return what a configuration says of each layer, up to one at least if it follows a rule."""
    made = implied(config, number + 1)
    return made[1] if made and made[0] == key else _sized(config.get(key))


def _sized(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, str)) else ()


def _is_by_number(value: Any) -> bool:
    """Whether a value is an object whose keys are all numbers of layers."""
    return isinstance(value, Mapping) and all(
        key.isascii() and key.isdecimal() for key in map(str, value)
    )
