"""Regular expressions of strangers, matched in time that grows with the name and no faster.

Python's own matcher tries one way after the other, and a pattern such as ``([a-z]+)+!`` has more
ways than can be tried. Here all ways are followed at once: the states that a pattern may be in
after each character (Thompson 1968, "Regular expression search algorithm",
https://doi.org/10.1145/363347.363387).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from re import _constants as op  # what `re` itself compiles; it has no other name for it
from re import _parser
from typing import Any

Test = Callable[[str], bool]

_MAX_LENGTH = 2000
_MAX_STATES = 10_000
#: Steps that one set of patterns may take in all, of about a microsecond.
MAX_MATCH_STEPS = 3_000_000
_SINGLE = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)
_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}
_AT = (op.AT_BEGINNING, op.AT_BEGINNING_STRING, op.AT_END, op.AT_END_STRING)


class Patterns:
    """Patterns that end a module's name, as peft reads those of an adapter.

    Args:
        patterns: Regular expressions; one matches a name if the name is, or ends with a dot and,
            what it describes.

    Raises:
        ValueError: If one is no regular expression, or is none that can be matched this way.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._matchers = {pattern: _matcher(pattern) for pattern in patterns}
        self._left = MAX_MATCH_STEPS

    def first(self, name: str) -> str | None:
        """Return the first pattern that matches a name, or None.

        Raises:
            ValueError: If that takes more steps than any real adapter needs.
        """
        for pattern, matcher in self._matchers.items():
            found, steps = matcher(name)
            self._left -= steps
            if self._left < 0:
                raise ValueError("too many patterns for too many modules")
            if found:
                return pattern
        return None


def _matcher(pattern: str) -> Callable[[str], tuple[bool, int]]:
    """Return what tells of a name whether a pattern matches it, and in how many steps."""
    if len(pattern) > _MAX_LENGTH:
        raise ValueError(f"it has {len(pattern)} characters")
    try:
        whole = rf"(.*\.)?({pattern})$"
        tree, own = _parser.parse(whole), _parser.parse(pattern)
        if not all(kind in (*_SINGLE, *_AT) for kind, _ in own):
            return _Automaton(tree).run
        compiled, length = re.compile(whole), len(own)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    # one way only at each place of the name, which Python's matcher is the fastest to go
    return lambda name: (
        compiled.match(name) is not None,
        1 + (name.count(".") * length + len(name)) // 100,
    )


class _Automaton:
    """The states of one pattern: each is a test of a character, or steps that take none."""

    def __init__(self, tree: Iterable[tuple]) -> None:
        self._tests: list[Test | None] = []
        self._places: list[str | None] = []
        self._next: list[list[int]] = []
        self._accept = self._state()
        self._start = self._sequence(tree, self._accept)

    def run(self, name: str) -> tuple[bool, int]:
        """Return whether the pattern matches from a name's start, and the steps that it took."""
        steps, states = 0, [self._start]
        for place in range(len(name) + 1):
            found = list(self._closure(states, place, name))
            steps += 1 + len(found)
            if self._accept in found:
                return True, steps
            if place == len(name):
                break
            here = name[place]
            states = [self._next[s][0] for s in found if (test := self._tests[s]) and test(here)]
            if not states:
                break
        return False, steps

    def _closure(self, states: Iterable[int], place: int, name: str) -> Iterator[int]:
        left, seen = list(states), set(states)
        while left:
            state = left.pop()
            yield state
            if self._tests[state] is not None or not self._holds(state, place, name):
                continue
            for following in self._next[state]:
                if following not in seen:
                    seen.add(following)
                    left.append(following)

    def _holds(self, state: int, place: int, name: str) -> bool:
        """Whether the place in the name is the one that a state asks for."""
        kind = self._places[state]
        if kind is None:
            return True
        if kind == "begin":
            return place == 0
        return place == len(name) or (kind == "end" and name[place:] == "\n")

    def _state(self, *following: int, test: Test | None = None, place: str | None = None) -> int:
        if len(self._tests) >= _MAX_STATES:
            raise ValueError("it is too long with its repetitions written out")
        self._tests.append(test)
        self._places.append(place)
        self._next.append(list(following))
        return len(self._tests) - 1

    def _sequence(self, tree: Iterable[tuple], after: int) -> int:
        for kind, value in reversed(list(tree)):
            after = self._item(kind, value, after)
        return after

    def _item(self, kind: object, value: Any, after: int) -> int:
        if kind in _SINGLE:
            return self._state(after, test=_test(kind, value))
        if kind is op.SUBPATTERN:
            _, add, drop, inner = value
            if add or drop:
                raise ValueError("it sets flags")
            return self._sequence(inner, after)
        if kind is op.BRANCH:
            return self._state(*(self._sequence(way, after) for way in value[1]))
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            return self._repeated(*value, after)
        if kind is op.AT and value in _AT:
            where = {op.AT_END: "end", op.AT_END_STRING: "very end"}.get(value, "begin")
            return self._state(after, place=where)
        raise ValueError(f"it uses {str(kind).lower()}, which is not read here")

    def _repeated(self, low: int, high: int, inner: Iterable[tuple], after: int) -> int:
        if max(low, 0 if high == op.MAXREPEAT else high) > _MAX_STATES:
            raise ValueError("it repeats too often")
        if high == op.MAXREPEAT:
            loop = self._state(after)
            self._next[loop].append(self._sequence(inner, loop))
            after = loop
        else:
            end = after
            for _ in range(high - low):
                after = self._state(end, self._sequence(inner, after))
        for _ in range(low):
            before = self._sequence(inner, after)
            if before == after:  # it takes nothing, however often
                break
            after = before
        return after


def _test(kind: object, value: Any) -> Test:
    """Return what tells whether a character is the one, or one of those, that a state takes."""
    if kind is op.ANY:
        return lambda character: character != "\n"
    if kind is op.LITERAL:
        return lambda character: ord(character) == value
    if kind is op.NOT_LITERAL:
        return lambda character: ord(character) != value
    if kind is op.RANGE:
        return lambda character: value[0] <= ord(character) <= value[1]
    if kind is op.CATEGORY and value in _CATEGORIES:
        category = re.compile(_CATEGORIES[value])
        return lambda character: category.match(character) is not None
    if kind is op.IN:
        wanted = value[0][0] is not op.NEGATE
        tests = [_test(*item) for item in value if item[0] is not op.NEGATE]
        return lambda character: any(test(character) for test in tests) is wanted
    raise ValueError(f"it uses {str(kind).lower()}, which is not read here")
