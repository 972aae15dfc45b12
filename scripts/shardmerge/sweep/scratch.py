"""Where weights of trials lie on a scratch disk: a link in the place of a trial's model folder.

Reading the workflow needs this, so it imports nothing of how weights are made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.sweep.sweeps import Sweep


def scratch_folder(sweep: Sweep, trial: str, results: str) -> Path:
    """Return the folder of a trial's model on the scratch disk."""
    place = digest([os.path.abspath(results), sweep.build(trial)])[:16]
    return Path(sweep.scratch or results).absolute() / f"shardmerge-{sweep.name}-{place}"


def use_scratch(sweep: Sweep, trials: Iterable[str], results: str) -> None:
    """Let the models of trials lie on the scratch disk; those that lie in the results stay there.

    Raises:
        UserError: If the scratch folder cannot be used.
    """
    for trial in trials:
        model = Path(results, sweep.build(trial), "model")
        target = scratch_folder(sweep, trial, results)
        if model.is_dir() and not model.is_symlink():
            continue
        try:
            target.mkdir(parents=True, exist_ok=True)
            model.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(model):
                model.symlink_to(target, target_is_directory=True)
            elif Path(os.readlink(model)) != target:
                model.unlink()
                model.symlink_to(target, target_is_directory=True)
        except OSError as error:
            where = "configuration: sweep.scratch"
            raise UserError(f"{target} cannot be used ({error.strerror})", where) from None


def leave_scratch(model: Path) -> None:
    """Give a model that lies on the scratch disk a folder of its own, with its small files."""
    if not model.is_symlink():
        return
    part, there = model.with_name("model.new"), Path(os.readlink(model))
    part.mkdir(exist_ok=True)
    small = [f for f in sorted(there.rglob("*")) if f.is_file() and f.suffix != ".safetensors"]
    for file in small:
        copy = part / file.relative_to(there)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    model.unlink()
    part.rename(model)
    for file in small:
        file.unlink()
    with contextlib.suppress(OSError):  # what is not ours stays, and so does its folder
        there.rmdir()
