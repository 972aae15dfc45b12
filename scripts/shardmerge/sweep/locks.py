"""The lock of a trial: of the sweep's lock, the part that its recipe names."""

from __future__ import annotations

from pathlib import Path

from shardmerge.base.files import write_text
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.sources.lock import Lock, read_lock
from shardmerge.sources.sources import lock_path, lock_text
from shardmerge.sweep.sweeps import Sweep


def write_lock(sweep: Sweep, trial: str, output: Path) -> None:
    """Write the lock of a trial's recipe.

    Args:
        sweep: The sweep.
        trial: Its name.
        output: The lock's file.

    Raises:
        UserError: If the sweep's lock cannot be read.
    """
    candidate = next(c for c in sweep.candidates if c.name == trial)
    recipe, known = parse_recipe(candidate.text, trial), read_lock(lock_path(sweep.recipe))
    sources = {one.model: known.sources[one.model] for one, _ in recipe.named}
    texts = {path: known.texts[path] for path in recipe.texts}
    write_text(output, lock_text(Lock(sources, texts)))
