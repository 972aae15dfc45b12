"""From a configuration to its plan, kept on disk so that the next parse only reads it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from shardmerge.digest import canonical_json, digest
from shardmerge.errors import UserError
from shardmerge.files import load_json, read_text, write_text
from shardmerge.pickles import Conversion
from shardmerge.plan import Plan, Planned
from shardmerge.planner import make_plan
from shardmerge.recipe import Recipe, load_recipe
from shardmerge.settings import Settings
from shardmerge.sources import Sources, lock_path
from shardmerge.spec import ShardSpec

#: Folders below the working directory.
CACHE = Path(".shardmerge")
MODELS = Path("resources/models")
CONVERTED = Path("resources/converted")


def load_plan(
    settings: Settings, *, head: bool = True, renew: bool = False, say: Callable[[str], None]
) -> Plan:
    """Return the plan of a configuration; lock what has no lock, check what has one.

    Args:
        settings: The configuration.
        head: Whether this is the user's own process. A job's trusts what the head checked.
        renew: Whether to lock all sources anew.
        say: Takes one line for the user.

    Raises:
        UserError: For every mistake that shows without reading weights.
    """
    with _uncollected():
        return _load_plan(settings, head, renew, say)


def _load_plan(settings: Settings, head: bool, renew: bool, say: Callable[[str], None]) -> Plan:
    texts = {path: read_text(path) for path in settings["recipes"]}
    if not head and (plan := _cached(_key(settings, texts))):
        return plan
    sources = _sources(settings)
    recipes: list[Recipe] = [load_recipe(path) for path in texts]
    for recipe in recipes:
        sources.conversions(recipe)
    locks = [sources.lock(recipe, write=head, renew=renew, say=say) for recipe in recipes]
    key = _key(settings, texts)
    plan = _cached(key)
    if plan is None:
        planned = make_plan(list(zip(recipes, locks, strict=True)), settings, sources.path)
        _keep(planned, key)
        plan = planned.plan
    for warning in plan.warnings if head else ():
        say(f"warning: {warning}")
    return plan


def load_conversions(settings: Settings, *, alone: bool) -> dict[str, Conversion]:
    """Return the conversions of pickled weights that a configuration needs, by folder name.

    Args:
        settings: The configuration.
        alone: Whether nothing but conversions is asked for, so that they need not be done.

    Raises:
        UserError: If a plan is asked for, and pickled weights are not converted yet.
    """
    if not settings["allow_pickle"]:
        return {}
    sources = _sources(settings)
    found = [c for path in settings["recipes"] for c in sources.conversions(load_recipe(path))]
    for conversion in found:
        if not (alone or conversion.done):
            raise UserError(
                f"{conversion.reference!r} has pickled weights, which are not converted yet",
                str(conversion.folder),
                "Run `snakemake convert` with the same configuration first.",
            )
    return {conversion.name: conversion for conversion in found}


def plan_path(settings: Settings) -> str:
    """Return where the plan of a configuration lies, once ``load_plan`` has made it."""
    return str(_plan_file(_key(settings, {path: read_text(path) for path in settings["recipes"]})))


def lock_paths(settings: Settings) -> list[str]:
    """Return the lock files of a configuration's recipes."""
    return [str(lock_path(recipe)) for recipe in settings["recipes"]]


def _sources(settings: Settings) -> Sources:
    converted = CONVERTED if settings["allow_pickle"] else None
    return Sources(settings["sources"], MODELS, CACHE, converted)


def spec_path(name: str) -> Path:
    """Return where the specification of that digest lies."""
    return CACHE / "specs" / f"{name}.json"


def load_spec(name: str) -> ShardSpec:
    """Return the specification of that digest.

    Raises:
        UserError: If there is none, which means that the workflow did not plan it.
    """
    return ShardSpec.from_json(dict(load_json(spec_path(name))))


def description_path(name: str) -> Path:
    """Return where the description of a build of that digest lies."""
    return CACHE / "builds" / f"{name}.json"


def _key(settings: Settings, texts: dict[str, str]) -> str:
    locks = []
    for path in texts:
        lock = lock_path(path)
        locks.append(hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None)
    return digest([_code(), settings.planned(), texts, locks])


def _plan_file(key: str) -> Path:
    return CACHE / "plans" / f"{key}.json"


def _cached(key: str) -> Plan | None:
    path = _plan_file(key)
    return Plan.from_json(load_json(path)) if path.exists() else None


def _keep(planned: Planned, key: str) -> None:
    """Write the plan last: where it is, all that it names is there too."""
    for name, spec in planned.specs.items():
        if not spec_path(name).exists():
            write_text(spec_path(name), canonical_json(spec.to_json()))
    for name, description in planned.descriptions.items():
        write_text(description_path(name), json.dumps(description))
    write_text(_plan_file(key), canonical_json(planned.plan.to_json()))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector of cycles away: a plan is a million objects and none is garbage yet."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@cache
def _code() -> str:
    """Return a digest of the library, so that a newer one plans anew."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
