"""What tensors need before their elements are made: made in their order, also ahead of time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardmerge.engine.pipeline import Stopped

if TYPE_CHECKING:
    import torch

    from shardmerge.algebra import expression as ex
    from shardmerge.algebra.lowering import Steps
    from shardmerge.engine.held import HeldSources
    from shardmerge.methods.passes import Map


@dataclass
class Prepared:
    """What is there of a tensor before its elements are made.

    Args:
        steps: What native code does; None where torch computes.
        held: Its sources, where they stay in memory.
        maps: What calls in passes do, where torch computes.
        whole: What is held whole for torch, flattened.
    """

    steps: Steps | None = None
    held: HeldSources | None = None
    maps: Mapping[ex.Call, Map] = field(default_factory=dict)
    whole: Sequence[torch.Tensor] = ()


#: Makes what a tensor needs, of its index and the number of its place.
Prepare = Callable[[int, int], Prepared]


class Ahead:
    """What tensors need, each made once: by the thread that asks first, or ahead of all that ask.

    A tensor takes a place as it is begun, and gives it back with its last window. Tensors begin in
    the order of the output, as windows do, so a thread waits only for earlier windows.

    Args:
        parts: Of each tensor that needs something in how many windows it lies.
        places: How many of them are there at once.
    """

    def __init__(self, parts: Mapping[int, int], places: int) -> None:
        self._left = dict(parts)
        self._turns = sorted(parts, reverse=True)
        self._free = list(range(places))
        self._begun: dict[int, tuple[int, Future[Prepared]]] = {}
        self._changed = threading.Condition()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, tensor: int) -> bool:
        return tensor in self._left

    def take(self, tensor: int, prepare: Prepare) -> Prepared:
        """Return what a tensor needs; who asks first waits for a place and makes it.

        Raises:
            Stopped: If another thread of the job failed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or tensor in self._begun or self._next() == tensor
            )
            if self._stopped:
                raise Stopped
            own = None if tensor in self._begun else self._begin()
            found = self._begun[tensor][1]
        if own:
            _make(*own, prepare)
        return found.result()

    def release(self, tensor: int) -> None:
        """Say that a window's part of a tensor is done; the last one frees its place."""
        with self._changed:
            self._left[tensor] -= 1
            if not self._left[tensor]:
                place, _ = self._begun.pop(tensor)
                self._free.append(place)
                self._changed.notify_all()

    def run(self, prepare: Prepare) -> None:
        """Make what is next as long as there are places: what a thread of its own does.

        What fails does so where it is taken.
        """
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopped or not self._turns or self._next() is not None
                )
                if self._stopped or not self._turns:
                    return
                own = self._begin()
            _make(*own, prepare)

    def stop(self) -> None:
        """Let every waiting thread go."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _next(self) -> int | None:
        """Return which tensor can be begun."""
        return self._turns[-1] if self._turns and self._free else None

    def _begin(self) -> tuple[int, int, Future[Prepared]]:
        tensor, place = self._turns.pop(), self._free.pop()
        self._begun[tensor] = place, Future()
        self._changed.notify_all()
        return tensor, *self._begun[tensor]


def _make(tensor: int, place: int, found: Future[Prepared], prepare: Prepare) -> None:
    try:
        found.set_result(prepare(tensor, place))
    except BaseException as error:
        found.set_exception(error)
