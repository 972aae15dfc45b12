"""The schedule that a configuration asks for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from shardmerge.plan.plan import LOADED_BYTES, Plan
from shardmerge.plan.schedule import make_schedule
from shardmerge.plan.trialroom import TrialRoom, TrialWish, make_room

if TYPE_CHECKING:
    from shardmerge.recipe.settings import Settings


def with_schedule(plan: Plan, settings: Settings, wish: TrialWish | None = None) -> Plan:
    """Return a plan with the schedule that a configuration asks for.

    Trials of sweeps are no steps of it: what they read stays until the last one is measured.

    Args:
        plan: The plan without one.
        settings: The configuration.
        wish: What sweeps ask for, where there are any.

    Raises:
        UserError: If ``disk_budget`` is too small.
    """
    shards = tuple(job for build in plan.models.values() for job in build.shards)
    tried = [job for build in plan.trials.values() for job in build.shards]
    used = {path for job in tried for path in job.deltas}
    tried += [job for job in plan.deltas if job.output in used]
    weights = {path for job in (*plan.deltas, *plan.shards) for path in job.sources}
    texts = {path for build in plan.builds.values() for path in build.files.values()}
    measured = settings.measured
    whole = {
        path
        for key, model in plan.sources.items()
        if key in measured or "sources" in measured or _is_loaded(plan, key, measured)
        for path in model.files
    }
    made = {job.output: job.bytes_written for job in plan.made.values()}
    early = {path for job in plan.made.values() for path in job.files}
    fetched = {
        path: job.size
        for path, job in plan.fetches.items()
        if path in weights or path in texts or path in whole or path in early
    }
    stay, keep = (fetched.keys() - weights) | whole, settings["keep_sources"]
    stay |= fetched.keys() & {path for job in tried for path in job.sources}
    auto, budget = settings["deltas"] == "auto", settings.disk_budget
    make = partial(
        make_schedule, plan.deltas, shards, fetched, made=made, early=early, deltas_go=auto
    )
    make_kept = partial(make, stay=fetched if keep else stay)
    room = TrialRoom()
    if wish and plan.trials:
        vectors = sum(job.bytes_written for job in plan.deltas if job.output in used)
        sizes = [build.bytes_written for build in plan.trials.values()]
        left = budget and max(1, budget - vectors)
        room = make_room(sizes, wish, left, lambda rest: make_kept(budget=rest))
        room = replace(room, bytes=room.bytes + vectors)
        budget = budget and max(1, budget - room.bytes)
    schedule = make_kept(budget=budget)
    return replace(plan, schedule=schedule, lean=make(stay=stay).peak(), room=room)


def _is_loaded(plan: Plan, key: str, measured: Collection[str]) -> bool:
    """Whether an adapter is loaded or measured on a source."""
    names = [name for name, adapter in plan.adapters.items() if adapter.base == key]
    asked = "adapters" in measured or not set(measured).isdisjoint(names)
    return bool(names) and (asked or plan.sources[key].size <= LOADED_BYTES)
