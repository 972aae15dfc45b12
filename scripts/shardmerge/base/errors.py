"""Errors for people: what is wrong, where, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from shardmerge.base.printable import printable

#: Words, and characters of one, among which the nearest is looked for.
_MOST, _LONGEST = 5000, 200
#: Begins each further line of a message: no text within it can pass for a line of its own.
_FURTHER = "\n  "


class UserError(Exception):
    """A mistake in what the user gave, told without a traceback.

    Each of its texts may hold text of strangers: what a terminal would act upon is shown instead.

    Args:
        message: What is wrong, one sentence.
        where: File and line, or tensor and model, where it is wrong.
        hint: What to write instead, if that can be guessed.
    """

    def __init__(self, message: str, where: str | None = None, hint: str | None = None) -> None:
        self.message = _cut(message)
        self.where = where and _cut(where)
        self.hint = hint and _cut(hint)
        super().__init__(str(self))

    def at(self, where: str) -> UserError:
        """Return the same error as one of a place that led to it, such as a recipe's line."""
        message = f"{self.where}: {self.message}" if self.where else self.message
        return UserError(message, where, self.hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        text = f"{text}{_FURTHER}{self.hint}" if self.hint else text
        return _FURTHER.join(map(printable, text.split(_FURTHER)))


def shortened(value: object) -> str:
    """Return a value as Python writes it, without its middle if it is longer than a line or two."""
    return _cut(repr(value), 200)


def _cut(text: str, most: int = 2000) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


def misspelt(word: str, known: Iterable[str], least: float = 0.8) -> str | None:
    """Return the known word that another is surely a misspelling of, or None.

    Args:
        word: What was written.
        known: What could have been meant.
        least: How alike the two must be, up to 1.
    """
    return _nearest(str(word), sorted(set(known)), least)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a sentence that suggests the nearest of the known words, or lists them if few."""
    known = sorted(set(known))
    if near := _nearest(str(word), known, 0.6):
        return f"Did you mean {near!r}?"
    if 0 < len(known) <= 40:
        return "Known here: " + ", ".join(known) + "."
    return None


def _nearest(word: str, known: list[str], cutoff: float) -> str | None:
    """Return the known word that is the nearest, if one is near; nobody looks for it for long."""
    if len(word) > _LONGEST:
        return None
    if alike := [w for w in known if w.casefold() == word.casefold()]:
        return alike[0]
    alike = [w for w in known if abs(len(w) - len(word)) <= (1 - cutoff) * len(w + word)]
    near = difflib.get_close_matches(word, alike[:_MOST], n=1, cutoff=cutoff)
    return near[0] if near else None
