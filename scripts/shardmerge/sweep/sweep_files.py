"""Files of sweeps: a recipe for each trial, and what tells jobs of a sweep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, write_text
from shardmerge.base.forms import FormError
from shardmerge.base.sealed import AGAIN
from shardmerge.plan.files import CACHE, check_whole
from shardmerge.sweep.sweeps import Sweep


def keep_recipes(sweeps: Sequence[Sweep], results: str) -> None:
    """Write each trial's recipe into its folder, unless it is there."""
    for path, text in _recipes(sweeps, results):
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)


def _recipes(sweeps: Sequence[Sweep], results: str) -> Iterator[tuple[Path, str]]:
    for sweep in sweeps:
        yield from ((Path(v.path), v.text) for v in sweep.variants(results))


def keep_sweep(sweep: Sweep, dry: bool = False) -> str:
    """Return the path of a file that tells jobs of a sweep, written unless this is a dry run."""
    text = json.dumps(forms.written(sweep))  # in its own order: the first objective counts most
    path = CACHE / "sweeps" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    if not dry and not (path.is_file() and path.read_bytes() == text.encode()):
        write_text(path, text)
    return str(path)


def load_sweep(path: str | Path) -> Sweep:
    """Return the sweep in a file of ``keep_sweep``.

    Raises:
        UserError: If it is damaged.
    """
    check_whole(Path(path), Path(path).stem)
    try:
        return forms.read(Sweep, load_json(path))
    except FormError:
        raise UserError("is damaged", str(path), AGAIN) from None
