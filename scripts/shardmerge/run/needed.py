"""Packages that are not always there: what needs them, and how to get them."""

from __future__ import annotations

from importlib.util import find_spec

from shardmerge.base.errors import UserError

_TORCH = "merges that are not native code, float64, adapters and GPUs"
_BENCH = "benchmarks, and the test that transformers loads a model,"
#: By the name that is imported: what needs it, and the target of make that installs it.
_PACKAGES = {
    "torch": (_TORCH, "env-torch"),
    **dict.fromkeys(("lm_eval", "transformers", "datasets", "tokenizers"), (_BENCH, "env")),
    "peft": ("adapters", "env"),
}


def missing(name: str | None) -> UserError | None:
    """Return what to tell where a package cannot be imported; None if it is none of these.

    Args:
        name: As it is imported.
    """
    known = _PACKAGES.get((name or "").partition(".")[0])
    if known is None:
        return None
    what, target = known
    return UserError(
        f"{what} need the package {name}, which is not installed", hint=f"Run `make {target}`."
    )


def check_torch(needed: bool) -> None:
    """Tell before any job if torch is needed and not there.

    Args:
        needed: Whether a job of the plan needs it.

    Raises:
        UserError: If so.
    """
    if needed and find_spec("torch") is None and (error := missing("torch")):
        raise error
