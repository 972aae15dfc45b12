"""Files that were typed as targets: whether the plan has them, and if not, what is meant."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from shardmerge.base.errors import UserError, did_you_mean, misspelt
from shardmerge.run.wildcards import Meaning, PathValues

#: How alike a value must be to one that is suggested instead.
_ALIKE = 0.6
#: Files of one kind that are looked at to guess which one was meant.
_MOST = 50
_WILDCARD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class RuleFile:
    """A file that a rule makes or writes a log to.

    Args:
        pattern: Its path, with wildcards in braces and without what they are limited to.
        own: Whether the rule is one of the workflow's own, and not of one that imports it.
    """

    pattern: str
    own: bool

    @property
    def wildcards(self) -> list[str]:
        """Names of its wildcards, each once."""
        return list(dict.fromkeys(_WILDCARD.findall(self.pattern)))

    def path(self, values: PathValues) -> str:
        """Return the path with values of the wildcards."""
        return _WILDCARD.sub(lambda found: values[found[1]], self.pattern)

    def values(self, path: str) -> PathValues | None:
        """Return what the wildcards are in a path, None if it is not of this pattern."""
        one = self._expression("[^/]+").fullmatch(path)
        found = one or self._expression(".+").fullmatch(path)
        return found.groupdict() if found else None

    def _expression(self, some: str) -> re.Pattern[str]:
        seen: set[str] = set()
        parts = _WILDCARD.split(self.pattern)
        for place, part in enumerate(parts):
            if place % 2 == 0:
                parts[place] = re.escape(part)
            else:
                parts[place] = f"(?P={part})" if part in seen else f"(?P<{part}>{some})"
                seen.add(part)
        return re.compile("".join(parts))


@dataclass(frozen=True)
class Makeable:
    """What the rules that were read can make.

    Args:
        makers: Gives what each rule that can make a file has as wildcards there, and whether the
            rule is one of the workflow's own.
        files: The files of all rules.
        names: Rules that can be targets themselves.
    """

    makers: Callable[[str], Sequence[tuple[PathValues, bool]]]
    files: Sequence[RuleFile]
    names: Collection[str]


@dataclass(frozen=True)
class _Guess:
    """A kind of file that a path may have been meant as.

    Args:
        right: How many of its wildcards have a value that the plan has.
        wrong: The first wildcard that has none.
        values: Of the wildcards.
        known: Values that the plan has for the wrong one.
        near: The path of a file of that kind that the plan has, if one is like it.
        likeness: Of that path, from 0 to 1.
    """

    right: int
    wrong: str
    values: PathValues
    known: Collection[str]
    near: str | None
    likeness: float


class TargetFiles:
    """Looks at the files that are targets.

    Args:
        meanings: Of the wildcards, in the order in which they depend on each other.
        making: What the rules can make.
    """

    def __init__(self, meanings: Mapping[str, Meaning], making: Makeable) -> None:
        self._meanings, self._making = meanings, making

    def check(self, path: str) -> None:
        """Refuse a path that no job of the plan makes.

        Args:
            path: As it was typed, or as Snakemake has made it relative.

        Raises:
            UserError: If so.
        """
        if self._is_made(path):
            return
        for other in (os.path.relpath(path), os.path.abspath(path)):
            if other != path and self._is_made(other):
                raise UserError("no rule makes a file of this spelling", path, f"Write {other!r}.")
        if any(self._fits(file, path) for file in self._making.files):
            hint = "config/README.md tells which keys ask for it."
            raise UserError("is not made under this configuration", path, hint)
        if guesses := list(self._guesses(path)):
            self._tell(path, max(guesses, key=lambda guess: (guess.right, guess.likeness)))
        if os.path.basename(path) == path:
            single = [file.pattern for file in self._making.files if not file.wildcards]
            hint = did_you_mean(path, [*self._making.names, *single])
            raise UserError(f"there is no target {path!r}", hint=hint)
        known = list(self._files_like(path))
        if inside := [file for file in known if file.startswith(f"{path}/")]:
            hint = f"Name a file in it, such as {min(inside, key=len)!r}."
            raise UserError("is a folder, and targets are files", path, hint)
        near = misspelt(path, known, _ALIKE)
        raise UserError("no rule makes such a file", path, near and f"Did you mean {near!r}?")

    def _is_made(self, path: str) -> bool:
        """Whether a job of the plan, or of another workflow, makes a file."""
        return any(
            not own or self._first_unknown(values) is None
            for values, own in self._making.makers(path)
        )

    def _first_unknown(self, values: PathValues) -> str | None:
        """Return the first wildcard whose value the plan does not have, None if it has all."""
        for name, meaning in self._meanings.items():
            if name in values and values[name] not in meaning.known(values):
                return name
        return None

    def _fits(self, file: RuleFile, path: str) -> bool:
        """Whether the plan has all that a path names, though no rule makes the file here."""
        values = file.values(path) if file.own and file.wildcards else None
        return values is not None and self._first_unknown(values) is None

    def _guesses(self, path: str) -> Iterator[_Guess]:
        for file in self._making.files:
            values = file.values(path) if file.own else None
            wrong = self._first_unknown(values) if values else None
            if values and wrong:
                order = [name for name in self._meanings if name in values]
                known = self._meanings[wrong].known(values)
                near = self._nearest(file, values)
                alike = difflib.SequenceMatcher(None, near or "", path).ratio() if near else 0.0
                yield _Guess(order.index(wrong), wrong, values, known, near, alike)

    def _nearest(self, file: RuleFile, values: PathValues) -> str | None:
        """Return the path with the nearest values in place of unknown ones, if some are near."""
        changed = dict(values)
        while wrong := self._first_unknown(changed):
            near = misspelt(changed[wrong], self._meanings[wrong].known(changed), _ALIKE)
            if near is None:
                return None
            changed[wrong] = near
        path = file.path(changed)
        return path if self._is_made(path) else None

    def _tell(self, path: str, guess: _Guess) -> None:
        meaning, value = self._meanings[guess.wrong], guess.values[guess.wrong]
        hint = did_you_mean(value, guess.known) if guess.known else meaning.lacking
        if guess.near:
            hint = f"Did you mean {guess.near!r}?"
        raise UserError(meaning.unknown.format_map(guess.values), path, hint)

    def _files_like(self, path: str) -> Iterator[str]:
        """Yield files of the plan, of each kind those first that share words with a path."""
        for file in self._making.files:
            if file.own or not file.wildcards:
                yield from islice(self._paths(file, {}, path), _MOST)

    def _paths(self, file: RuleFile, values: PathValues, path: str) -> Iterator[str]:
        left = [name for name in self._meanings if name in file.wildcards and name not in values]
        if left:
            known = self._meanings[left[0]].known(values)
            for value in [value for value in known if value in path] or known:
                yield from self._paths(file, {**values, left[0]: value}, path)
        elif not set(file.wildcards) - set(values):
            made = file.path(values)
            if self._is_made(made):
                yield made
