"""Which models a model is made from, and which one it is compared with."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shardmerge.plan.description import BuildDescription, load_description
from shardmerge.plan.plan import Plan
from shardmerge.recipe.naming import folder_names


def parents(plan: Plan, found: BuildDescription) -> list[str]:
    """Return what a build's sources are called in tables of benchmarks."""
    labels = folder_names(plan.sources, plan.models)
    return [labels[key] for key in found.sources if key in labels]


def parent_pairs(plan: Plan, models: Collection[str]) -> list[tuple[str, str]]:
    """Return each build that is measured with each measured model that it is made from.

    Args:
        plan: As of ``references``.
        models: Models that are measured.
    """
    return [
        (name, parent)
        for name, build in plan.builds.items()
        if name in models
        for parent in parents(plan, load_description(build.digest))
        if parent in models
    ]


def references(
    plan: Plan,
    models: Collection[str],
    wanted: str | None,
    derived: Mapping[str, str] | None = None,
) -> dict[str, str | None]:
    """Return the model that each model is compared with.

    Args:
        plan: Its builds' descriptions lie where ``planning`` keeps them.
        models: Models that are measured.
        wanted: One of them for all, or None: for a build the model that gives it its configuration,
            for a source the one of the first build that has it.
        derived: What each export is an export of, and each adapter an adapter of: it is compared
            with that, so that the table shows what it costs or brings.
    """
    if wanted is not None:
        return dict.fromkeys(models, wanted)
    labels = folder_names(plan.sources, plan.models)
    found: dict[str, str | None] = dict(derived or {})
    for name, build in plan.loadable.items():
        description = load_description(build.digest)
        recipient = labels.get(description.reference)
        if recipient not in models:
            recipient = next((model for model in models if model != name), None)
        for model in (name, *parents(plan, description)):
            found.setdefault(model, recipient)
    first = next((r for model, r in found.items() if model not in (derived or {})), None)
    return {model: found.get(model, first) for model in models}
