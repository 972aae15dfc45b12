"""The schedule that a configuration asks for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from shardmerge.plan.schedule import make_schedule

if TYPE_CHECKING:
    from shardmerge.plan.plan import Plan
    from shardmerge.recipe.settings import Settings


def with_schedule(plan: Plan, settings: Settings) -> Plan:
    """Return a plan with the schedule that a configuration asks for.

    Raises:
        UserError: If ``disk_budget`` is too small.
    """
    shards = plan.shards
    weights = {path for job in (*plan.deltas, *shards) for path in job.sources}
    texts = {path for build in plan.builds.values() for path in build.files.values()}
    measured = settings.measured
    whole = {
        path
        for key, model in plan.sources.items()
        if key in measured or "sources" in measured
        for path in model.files
    }
    fetched = {
        path: job.size
        for path, job in plan.fetches.items()
        if path in weights or path in texts or path in whole
    }
    stay, keep = (fetched.keys() - weights) | whole, settings["keep_sources"]
    auto, budget = settings["deltas"] == "auto", settings.disk_budget
    make = partial(make_schedule, plan.deltas, shards, fetched, deltas_go=auto)
    schedule = make(stay=fetched if keep else stay, budget=budget)
    return replace(plan, schedule=schedule, lean=make(stay=stay).peak())
