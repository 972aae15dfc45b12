"""What is written of a trial once it is measured and its weights are seen to."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.benchmark.trials import TrialSet
from shardmerge.sweep.sweeps import Sweep


def settled_data(sweep: Sweep, points: TrialSet, trial: str, identity: str) -> dict[str, Any]:
    """Return a trial's values and scores as JSON-able data.

    Args:
        sweep: The sweep.
        points: With what was measured of the trial.
        trial: Its name.
        identity: Digest of all that its measurements depend on.
    """
    candidate = next(c for c in sweep.candidates if c.name == trial)
    point = next(t for t in points.trials if t.name == trial)
    return {
        "trial": trial,
        "variables": dict(candidate.values),
        "metrics": {label: forms.written(metric) for label, metric in point.metrics.items()},
        "identity": identity,
    }


def identity_in(path: str | os.PathLike[str]) -> str | None:
    """Return the identity in a file of ``settled_data``; None if there is none."""
    if os.path.exists(path):
        with contextlib.suppress(UserError):
            return load_json(path).get("identity")
    return None
