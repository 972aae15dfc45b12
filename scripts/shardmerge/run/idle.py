"""What a target that was asked for does not make, and why: else a run would end in silence."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from shardmerge.base.text import plural
from shardmerge.run.targets import Targets

#: What to write where a target makes nothing.
NAME_TASKS = "Name tasks: `benchmark: {tasks: [arc_easy]}`."
NAME_FORMS = (
    "Name types or schemes: `exports: {gguf: {types: [q8_0]}, compressed: {schemes: [w4a16]}}`."
)
GIVE_SWEEP = "Give a configuration with the key `sweep` (docs/howto/sweep.md)."
#: What is done with models and not with adapters, by target, and what can be done instead.
_MODELS_ONLY = {
    "benchmarks": ("benchmarked", "name it, or `adapters`, in `benchmark: {{models: [...]}}`"),
    "exports": ("exported", "merge it as `base+folder` to export that"),
}
#: Targets of which the above may be true.
MAY_BE_IDLE = (*_MODELS_ONLY, "publish", "preview", "sweep")


def idle(asked: Collection[str], targets: Targets, *, sweeps: bool) -> list[str]:
    """Return a sentence for each target that makes nothing of something.

    Args:
        asked: Names of the targets that were asked for.
        targets: What the workflow makes.
        sweeps: Whether the configuration has a sweep.
    """
    return [*_unset(asked, targets, sweeps), *_of_adapters(asked, targets)]


def _unset(asked: Collection[str], targets: Targets, sweeps: bool) -> Iterator[str]:
    if "benchmarks" in asked and not targets.settings["benchmark"]["tasks"]:
        yield f"nothing is benchmarked, since the configuration has no task; {_inside(NAME_TASKS)}"
    if "exports" in asked and not targets.exports.forms():
        yield f"nothing is exported, since the configuration names no form; {_inside(NAME_FORMS)}"
    made = [*targets.plan.models, *targets.plan.adapters]
    for target in {"publish", "preview"} & set(asked) if not made else ():
        yield f"nothing is there for `{target}`, since no model and no adapter is built"
    if {"sweep", "search"} & set(asked) and not sweeps:
        yield f"nothing is tried, since there is no sweep; {_inside(GIVE_SWEEP)}"


def _of_adapters(asked: Collection[str], targets: Targets) -> Iterator[str]:
    for target, (done, instead) in _MODELS_ONLY.items():
        measured = targets.measured if target == "benchmarks" else ()
        names = [name for name in targets.plan.adapters if name not in measured]
        if target in asked and names:
            folder = targets.paths.adapter_file(names[0], "x").removesuffix("/x")
            rest = f", and {plural(len(names) - 1, 'other')}" if len(names) > 1 else ""
            yield f"adapter {names[0]}{rest}: not {done}; {instead.format(folder=folder)}"


def _inside(sentence: str) -> str:
    """Return a sentence as it reads behind a semicolon."""
    return sentence[0].lower() + sentence[1:].removesuffix(".")
