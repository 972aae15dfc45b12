"""Where weights of trials lie on a scratch disk: a link in the place of a trial's model folder.

Reading the workflow needs this, so it imports nothing of how weights are made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.sweep.sweeps import Sweep

#: Folders that each machine has for itself.
_OF_A_MACHINE = ("/dev", "/run", "/tmp", "/var/tmp")
_WHERE = "configuration: sweep.scratch"


def scratch_folder(sweep: Sweep, trial: str, results: str) -> Path:
    """Return the folder of a trial's model on the scratch disk."""
    place = digest([os.path.abspath(results), sweep.build(trial)])[:16]
    return scratch_root(sweep.scratch or results) / f"shardmerge-{sweep.name}-{place}"


def scratch_root(scratch: str) -> Path:
    """Return the scratch folder, with variables such as ``$TMPDIR`` as they are on this machine.

    Raises:
        UserError: If a variable is not set.
    """
    found = os.path.expandvars(scratch)
    if "$" in found:
        hint = "Set its variable, or name a folder."
        raise UserError(f"{scratch!r} has a variable that is not set", _WHERE, hint)
    return Path(found).absolute()


def check_shared(scratch: str, results: str) -> None:
    """Refuse a scratch folder that other machines do not see.

    The jobs of a trial, which build it, measure it and delete it, run on nodes that the scheduler
    chooses. So none of them can rely on the disk of another one's node.

    Args:
        scratch: As it is configured.
        results: The folder of results, which all nodes see.

    Raises:
        UserError: If it is one of a machine.
    """
    # what a variable stands for may be another folder on each node
    own = "$" in scratch or any(
        scratch_root(scratch).is_relative_to(place)
        and not Path(results).absolute().is_relative_to(place)
        for place in (*_OF_A_MACHINE, tempfile.gettempdir())
    )
    if own:
        raise UserError(
            f"{scratch} is a place of one machine, and the jobs of a trial run on several: one "
            "builds its weights, another one reads them",
            _WHERE,
            "Name a folder on a disk that all nodes share, or run on one machine (`--cores`).",
        )


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
            raise UserError(f"{target} cannot be used ({error.strerror})", _WHERE) from None


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
