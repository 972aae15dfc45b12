"""The disk that trials of sweeps take: their weights come and go, few are there at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.text import human_bytes


@dataclass(frozen=True)
class TrialRoom:
    """What trials may hold of the disk.

    Args:
        window: How many trials' weights may be there besides those that are kept; 0: of all.
        bytes: What all of these take at most, kept ones too; of a set of best trials, whose number
            is not known before, one is counted.
        kept: Bytes that kept weights may take; None: as many as they are.
    """

    window: int = 0
    bytes: int = 0
    kept: int | None = None


@dataclass(frozen=True)
class TrialWish:
    """What sweeps ask for.

    Args:
        parallel: How many trials' weights may be there at a time.
        keep: Whose weights stay: those of the best, of all, of none.
    """

    parallel: int
    keep: str

    @classmethod
    def of(cls, sweeps: Sequence[Mapping[str, Any]]) -> TrialWish | None:
        """Return what configured sweeps ask for together; None if there is none."""
        if not sweeps:
            return None
        words = {sweep["keep"] for sweep in sweeps}
        keep = next(word for word in ("all", "best", "none") if word in words)
        return cls(min(sweep["parallel"] for sweep in sweeps), keep)


def make_room(
    sizes: Sequence[int], wish: TrialWish, budget: int | None, check: Callable[[int | None], object]
) -> TrialRoom:
    """Return what trials may hold.

    Args:
        sizes: Bytes of each trial's weights.
        wish: What sweeps ask for.
        budget: Bytes for all; None for any number.
        check: Raises a UserError if the bytes that are left for all else are too few.

    Raises:
        UserError: If one trial at a time is too much.
    """
    if wish.keep == "all":
        _check_rest(budget, sum(sizes), check)
        return TrialRoom(0, sum(sizes))
    largest, kept = max(sizes), int(wish.keep == "best")
    for window in range(min(wish.parallel, len(sizes)), 0, -1):
        room = TrialRoom(window, (window + kept) * largest, budget and kept * largest)
        try:
            _check_rest(budget, room.bytes, check)
        except UserError:
            if window == 1:
                raise
        else:
            return room
    raise AssertionError("a window has at least one trial")


def _check_rest(budget: int | None, taken: int, check: Callable[[int | None], object]) -> None:
    """Make sure that what trials leave of a budget is enough for all else."""
    if budget is not None and taken >= budget:
        raise UserError(
            f"{human_bytes(budget)} are too little: weights of trials take {human_bytes(taken)}",
            "configuration: disk_budget",
            "Write `keep: none` for the sweep, or a larger budget.",
        )
    check(None if budget is None else budget - taken)
