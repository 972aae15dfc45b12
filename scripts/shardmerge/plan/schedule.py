"""In which order shards are made where fetched files are deleted, so that a disk is enough.

Everything that takes disk is an item with the step that brings it and the step after which it
goes. A file is fetched for step k only when the first w(k) steps are done and what only they
needed is deleted. So at any moment, however jobs are scheduled, the disk holds at most
S(k) - E(w(k)) for some k, where S(k) sums what the first k steps bring and E(j) what is gone
after the first j; w(k) is the smallest number for which that is within the room.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Protocol

from shardmerge.base.errors import UserError
from shardmerge.base.text import human_bytes

Exists = Callable[[str], bool]

#: Files are fetched for at most so many steps ahead: it bounds the edges of Snakemake's graph.
_AHEAD = 64


class ScheduledJob(Protocol):
    """A job that writes a shard, as ``plan.ShardJob``."""

    output: str
    sources: tuple[str, ...]
    deltas: tuple[str, ...]
    bytes_written: int


@dataclass(frozen=True)
class Item:
    """A file that takes disk.

    Args:
        path: Where it is.
        size: Bytes.
        first: Number (from 1) of the step whose turn it must be before it can come, or 0.
        users: Numbers of the steps that read it.
        goes: Whether it is deleted after the last of them.
        fetched: Whether it comes from the Hub.
    """

    path: str
    size: int
    first: int
    users: tuple[int, ...]
    goes: bool
    fetched: bool


@dataclass(frozen=True)
class Schedule:
    """The order of shards, and what must be done before files are fetched.

    Args:
        order: Outputs of the jobs, task vectors and shards; the steps.
        room: Bytes that all items may take together.
        items: All that takes disk.
    """

    order: tuple[str, ...]
    room: int
    items: tuple[Item, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schedule:
        """Return the schedule that ``dataclasses.asdict`` made data of."""
        items = (Item(**{**item, "users": tuple(item["users"])}) for item in data["items"])
        return cls(tuple(data["order"]), data["room"], tuple(items))

    def peak(self, exists: Exists = lambda path: False) -> int:
        """Return the bytes of disk that are needed at most beyond those of files that exist."""
        missing = [item for item in self.items if not exists(item.path)]
        came, gone = _sums(missing, len(self.order))
        waits = self._waits(exists)
        return max((came[k] - gone[j] for k, j in enumerate(waits, 1)), default=came[0])

    def gates(self, done: Exists, exists: Exists) -> dict[str, tuple[str, ...]]:
        """Return the outputs that must be done before each file is fetched, where there are any.

        A gate names what is new since the last one that it depends on, so that all of them
        together grow with the number of steps only.

        Args:
            done: Whether a step's output is written and checked already.
            exists: Whether a file is there.
        """
        finished = [done(output) for output in self.order]
        waits = self._waits(exists)
        turns = {i.path: turn for i in self.items if i.goes and i.fetched
                 if (turn := next((n for n in i.users if not finished[n - 1]), 0))}  # fmt: skip
        starts = sorted(set(turns.values()))
        gates: dict[int, tuple[str, ...]] = {}
        for start in starts:
            wait = waits[start - 1]
            anchor = next((s for s in reversed(starts) if s <= wait), None)
            begin = waits[anchor - 1] if anchor else 0
            gates[start] = tuple(self.order[k] for k in range(begin, wait) if not finished[k])
        return {path: gates[turn] for path, turn in turns.items() if gates[turn]}

    def _waits(self, exists: Exists) -> list[int]:
        """Return for each step how many of the first steps must be done before its fetches."""
        items = [replace(i, first=0) if exists(i.path) else i for i in self.items]
        came, gone = _sums(items, len(self.order))
        return [
            min(k - 1, max(k - _AHEAD, bisect_left(gone, came[k] - self.room)))
            for k in range(1, len(came))
        ]


def make_schedule(
    deltas: Sequence[ScheduledJob],
    shards: Sequence[ScheduledJob],
    fetched: Mapping[str, int],
    *,
    made: Mapping[str, int] = MappingProxyType({}),
    early: Collection[str] = (),
    stay: Iterable[str] = (),
    deltas_go: bool = True,
    budget: int | None = None,
) -> Schedule:
    """Return the order of shards that holds the least disk, and what each one waits for.

    Args:
        deltas: Jobs that store task vectors.
        shards: Jobs that write models.
        fetched: Files that are fetched, path to bytes.
        made: Small sources that jobs make before any shard, and that stay, path to bytes.
        early: Files that those jobs read, so that none can wait for work on another.
        stay: Those of ``fetched`` that are not deleted when the last shard that needs them is made.
        deltas_go: Whether stored task vectors are deleted.
        budget: Bytes that all may take together; None for what it takes to fetch the files of
            one shard while the one before is made.

    Raises:
        UserError: If the budget is too small.
    """
    stay, go = set(stay), {job.output for job in deltas} if deltas_go else set()
    found = []
    for order in (_in_turn(deltas, shards), _least_first(deltas, shards, fetched)):
        items = _items(order, fetched, stay, go, set(early))
        items += [Item(path, size, 0, (), False, False) for path, size in made.items()]
        found.append((_most(items, len(order), ahead=2), order, items))
    room, order, items = min(found, key=lambda row: row[0])
    least = _most(items, len(order), ahead=1)
    if budget is not None and budget < least:
        raise UserError(
            f"{human_bytes(budget)} are too little: what is needed at once, one shard after the "
            f"other, is {human_bytes(least)}",
            "configuration: disk_budget",
            "Set `keep_sources: false` to have source files deleted when they are used."
            if stay.issuperset(fetched) and fetched
            else None,
        )
    outputs = tuple(job.output for job in order)
    return Schedule(outputs, room if budget is None else budget, tuple(items))


def _most(items: Sequence[Item], count: int, ahead: int) -> int:
    """Return the peak where files are fetched so many steps ahead."""
    came, gone = _sums(items, count)
    return max((came[k] - gone[max(0, k - ahead)] for k in range(1, count + 1)), default=came[0])


def _in_turn(deltas: Sequence[ScheduledJob], shards: Sequence[ScheduledJob]) -> list[ScheduledJob]:
    """Return the jobs as they are numbered, task vectors before the first shard of theirs."""
    waiting = {job.output: job for job in deltas}
    order = []
    for shard in shards:
        order += [waiting.pop(path) for path in shard.deltas if path in waiting]
        order.append(shard)
    return order


def _least_first(
    deltas: Sequence[ScheduledJob], shards: Sequence[ScheduledJob], fetched: Mapping[str, int]
) -> list[ScheduledJob]:
    """Return the jobs so that the next one is always the one that has the least to be fetched."""
    made_by = {job.output: job for job in deltas}
    needs = [
        {p for job in (s, *(made_by[d] for d in s.deltas)) for p in job.sources if p in fetched}
        for s in shards
    ]
    users: dict[str, list[int]] = {}
    for number, paths in enumerate(needs):
        for path in paths:
            users.setdefault(path, []).append(number)
    cost = [sum(fetched[path] for path in paths) for paths in needs]
    heap = [(bytes_, number) for number, bytes_ in enumerate(cost)]
    heapq.heapify(heap)
    there: set[str] = set()
    chosen: dict[int, None] = {}
    while heap:
        bytes_, number = heapq.heappop(heap)
        if number in chosen or bytes_ != cost[number]:
            continue
        chosen[number] = None
        for path in sorted(needs[number] - there):
            there.add(path)
            for other in users[path]:
                cost[other] -= fetched[path]
                heapq.heappush(heap, (cost[other], other))
    return _in_turn(deltas, [shards[number] for number in chosen])


def _items(
    order: Sequence[ScheduledJob],
    fetched: Mapping[str, int],
    stay: set[str],
    go: set[str],
    early: set[str],
) -> list[Item]:
    users: dict[str, list[int]] = {}
    for number, job in enumerate(order, 1):
        for path in (*job.sources, *job.deltas):
            users.setdefault(path, []).append(number)
    first: dict[str, int] = {}
    items = []
    for path, size in fetched.items():
        goes = path in users and path not in stay
        first[path] = users[path][0] if goes and path not in early else 0
        items.append(Item(path, size, first[path], tuple(users.get(path, ())), goes, True))
    for job in order:
        # A shard can be written as soon as the last of its files is there, whosever turn it is.
        first[job.output] = max((first.get(p, 0) for p in (*job.sources, *job.deltas)), default=0)
        own = tuple(users.get(job.output, ()))
        goes = job.output in go and bool(own)
        items.append(Item(job.output, job.bytes_written, first[job.output], own, goes, False))
    return items


def _sums(items: Iterable[Item], count: int) -> tuple[list[int], list[int]]:
    """Return S and E of the module's docstring, from 0 to the number of steps."""
    came, gone = [0] * (count + 1), [0] * (count + 1)
    for item in items:
        came[item.first] += item.size
        if item.goes:
            gone[item.users[-1]] += item.size
    return list(accumulate(came)), list(accumulate(gone))
