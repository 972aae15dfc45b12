"""What is found of an object once and kept with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class once(Generic[_T]):
    """A ``functools.cached_property`` without its lock, for objects of which there are many.

    Args:
        find: Returns the value, given the object.
    """

    def __init__(self, find: Callable[[Any], _T]) -> None:
        self._find = find
        self.__doc__ = find.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> _T:
        found = self._find(instance)
        # past a frozen dataclass, and without a dictionary being made for the object
        object.__setattr__(instance, self._name, found)
        return found
