"""From a configuration to its plan, kept on disk so that the next parse only reads it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.base.files import read_text, sha256_of, write_text
from shardmerge.base.findings import unsilenced
from shardmerge.base.sealed import seal
from shardmerge.base.sharedjson import shared_json
from shardmerge.plan.files import (
    CACHE,
    check_whole,
    description_path,
    load_list,
    plan_list_path,
    plan_path,
    spec_path,
    use_plan,
)
from shardmerge.plan.plan import NO_PLAN, Plan, Planned, read_plan
from shardmerge.plan.trialroom import TrialWish
from shardmerge.recipe.recipe import Recipe, chosen, parse_recipe
from shardmerge.recipe.settings import Settings
from shardmerge.recipe.variants import RecipeFamily, Variant
from shardmerge.sources.pickles import Conversion
from shardmerge.sources.sources import Sources, lock_path

#: Folders below the working directory.
MODELS = Path("resources/models")
CONVERTED = Path("resources/converted")


@dataclass(frozen=True)
class Decision:
    """What a configuration comes to.

    Args:
        plan: The plan; NO_PLAN where weights must be converted first.
        path: Where the plan lies, or None.
        conversions: Of pickled weights, done or not, by folder name.
    """

    plan: Plan
    path: str | None
    conversions: Mapping[str, Conversion]


def decide(
    settings: Settings,
    variants: Sequence[Variant] = (),
    *,
    head: bool = True,
    renew: bool = False,
    convert: bool = False,
    dry: bool = False,
    warn: bool = True,
    planning: Callable[[], None] = lambda: None,
    say: Callable[[str], None],
) -> Decision:
    """Return what a configuration comes to; lock what has no lock, check what has one.

    Args:
        settings: The configuration.
        variants: Recipes of sweeps' trials; those of one template one after the other.
        head: Whether this is the user's own process. A job's trusts what the head checked.
        renew: Whether to lock all sources anew.
        convert: Whether conversions are asked for, so that they need not be done.
        dry: Whether this is a dry run, which writes no lock, and with ``renew`` no cache either.
        warn: Whether the plan's warnings are said, if no job is to tell them.
        planning: Called as soon as it is known that no plan is kept, perhaps twice.
        say: Takes one line for the user.

    Raises:
        UserError: For every mistake that shows without reading weights.
    """
    with _uncollected():
        options = head, renew, convert or not head, dry
        decision = _decide(settings, variants, *options, planning, say)
    for warning in decision.plan.warnings if head and warn else ():
        say(f"warning: {warning}")
    return decision


def load_plan(settings: Settings, *, head: bool = True, say: Callable[[str], None]) -> Plan:
    """Return the plan of a configuration alone; the rest as ``decide``."""
    return decide(settings, head=head, say=say).plan


def _decide(
    settings: Settings,
    variants: Sequence[Variant],
    head: bool,
    renew: bool,
    convert: bool,
    dry: bool,
    planning: Callable[[], None],
    say: Callable[[str], None],
) -> Decision:
    texts = {path: read_text(path) for path in settings["recipes"]}
    # A job writes no lock, so that the key stays; a head's plan is of the locks that it leaves.
    key = None if head else _key(settings, texts, variants, {})
    plan = _cached(key) if key else None
    if plan and not settings["allow_pickle"]:
        return _decided(plan, key, {})
    recipes = [parse_recipe(text, path) for path, text in texts.items()]
    families = _families(variants)
    keep = not (dry and renew)
    converted = CONVERTED if settings["allow_pickle"] else None
    sources = Sources(settings["sources"], MODELS, CACHE, converted, dry=dry, keep=keep)
    every = [*recipes, *families]
    conversions = {c.name: c for recipe in every for c in sources.conversions(recipe)}
    for conversion in conversions.values():
        if not conversion.done:
            if convert:
                return Decision(NO_PLAN, None, conversions)
            raise UserError(
                f"{conversion.reference!r} has pickled weights, which are not converted yet",
                str(conversion.folder),
                "Run `snakemake convert` with the same configuration first.",
            )
    if plan is None:
        if head and not all(map(Path.exists, map(lock_path, _locked(texts, variants)))):
            planning()  # to lock sources takes long, too
        chosen(recipes, settings["stages"])  # its mistakes need no lock
        known = [*recipes, *(one for family in families for one in family.recipes)]
        with _warned(known, settings, say):
            locks = [sources.lock(one, write=head, renew=renew, say=say) for one in every]
            key = key or _key(settings, texts, variants, sources.unwritten)
            plan = _cached(key)
            if plan is None:
                planning()
                from shardmerge.plan.planner import make_plan  # slow to load

                # with the settings that the key covers and no others
                pairs = list(zip(recipes, locks, strict=False))
                for family, lock in zip(families, locks[len(recipes) :], strict=True):
                    pairs += [(recipe, lock) for recipe in family.recipes]
                wish = TrialWish.of(settings.sweeps)
                planned = make_plan(pairs, settings.planned(), sources.path, wish)
                if keep:
                    _keep(planned, key)
                plan = planned.plan
    return _decided(plan, key, conversions)


def _families(variants: Sequence[Variant]) -> list[RecipeFamily]:
    """Return the recipes of trials, those of one template as one family."""
    templates = dict.fromkeys(variant.template for variant in variants)
    return [
        RecipeFamily(template, [v.parse() for v in variants if v.template == template])
        for template in templates
    ]


def _decided(plan: Plan, key: str, conversions: Mapping[str, Conversion]) -> Decision:
    use_plan(key)
    return Decision(plan, str(plan_path(key)), conversions)


@contextlib.contextmanager
def _warned(
    recipes: Sequence[Recipe], settings: Settings, say: Callable[[str], None]
) -> Iterator[None]:
    """Tell before a mistake what is odd about the recipes, which may be why."""
    try:
        yield
    except UserError:
        for warning in unsilenced((w for r in recipes for w in r.warnings), settings["silence"]):
            say(f"warning: {warning}")
        raise


def lock_paths(settings: Settings) -> list[str]:
    """Return the lock files of a configuration's recipes."""
    recipes = [*settings["recipes"], *(sweep["recipe"] for sweep in settings.sweeps)]
    return [str(lock_path(recipe)) for recipe in dict.fromkeys(recipes)]


def _key(
    settings: Settings,
    texts: dict[str, str],
    variants: Sequence[Variant],
    unwritten: Mapping[Path, str],
) -> str:
    """Return what a plan is kept by; the locks are the files', or texts of those not written."""
    locks: list[str | None] = []
    for lock in map(lock_path, _locked(texts, variants)):
        if lock in unwritten:
            locks.append(_sha256(unwritten[lock]))
        else:
            locks.append(sha256_of(lock) if lock.exists() else None)
    parts: list[Any] = [_code(), settings.planned().values, texts, locks]
    if variants:
        tried = [[v.path, v.text, v.build, v.template] for v in variants]
        parts.append([tried, asdict(TrialWish.of(settings.sweeps))])
    return digest(parts)


def _locked(texts: Mapping[str, str], variants: Sequence[Variant]) -> list[str]:
    """Return the files of recipes and of templates that have a lock each."""
    return [*texts, *dict.fromkeys(variant.template for variant in variants)]


def _cached(key: str) -> Plan | None:
    """Return a plan that is there whole, with all that its jobs read of it."""
    if not plan_path(key).exists():
        return None
    with contextlib.suppress(UserError):
        plan, files = read_plan(plan_path(key)), load_list(key)
        for sha256 in files.specs.values():
            check_whole(spec_path(sha256), sha256)
        for name, sha256 in files.builds.items():
            check_whole(description_path(name), sha256)
        return plan
    return None


def _keep(planned: Planned, key: str) -> None:
    """Write a plan and all that it names, the plan last; what is there and whole stays."""
    specs, builds = {}, {}
    try:
        # the disk makes hundreds of files safe while the texts of the next ones are made
        with _writer() as write:
            for name, spec in planned.specs.items():
                text = spec.text
                specs[name] = sha256 = _sha256(text)
                write(spec_path(sha256), text)
            for name, description in planned.descriptions.items():
                text = shared_json(description.to_json())
                builds[name] = _sha256(text)
                write(description_path(name), text)
        files = {"specs": specs, "builds": builds}
        _write_anew(plan_list_path(key), seal(files, key))
        # in its own order, so that a plan that is read lists sources and models as a new one does
        _write_anew(plan_path(key), seal(planned.plan.to_json(), key))
    except OSError as error:
        where = str(error.filename2 or error.filename or CACHE)
        raise UserError(f"cannot be written ({error.strerror})", where) from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _writer() -> Iterator[Callable[[Path, str], None]]:
    """Give a function that has files written by a thread; all are there when the block ends.

    It is one thread, and no other writes meanwhile: what a file may do for others is decided by
    a setting of the whole process.

    Raises:
        UserError, OSError: If a file cannot be written.
    """
    pool, written = ThreadPoolExecutor(1), []
    try:
        yield lambda path, text: written.append(pool.submit(_write_anew, path, text))
        for one in written:
            one.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write_anew(path: Path, text: str) -> None:
    with contextlib.suppress(UserError):
        # a missing file's error looks for names that are alike, which takes long among many
        if path.exists() and read_text(path, exact=True) == text:
            return
    write_text(path, text)


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
    found = []
    for folder, folders, names in os.walk(Path(__file__).parents[1]):
        folders.sort()
        for name in sorted(names):
            if name.endswith((".py", ".json")):
                with open(os.path.join(folder, name), "rb") as file:
                    found.append([name, hashlib.sha256(file.read()).hexdigest()])
    return digest(found)
