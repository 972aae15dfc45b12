"""The state of a CMA-ES search, which optuna keeps in its journal as a pickle, read safely.

A journal may be anybody's. So what is unpickled may name what such a state is made of, and no more.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from optuna.samplers import CmaEsSampler

from shardmerge.base.errors import UserError

#: What a pickled optimizer is made of.
_PARTS = {
    "cmaes._cma": {"CMA"},
    "numpy": {"dtype", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
}


class SafeCmaEsSampler(CmaEsSampler):
    """CMA-ES whose state is unpickled by names that are known to be harmless."""

    def _restore_optimizer(self, completed_trials: list[Any]) -> Any:
        for trial in reversed(completed_trials):
            prefix = self._attr_key_optimizer
            attrs = {k: v for k, v in trial.system_attrs.items() if k.startswith(prefix)}
            if attrs:
                return unpickled(self._concat_optimizer_attrs(attrs))
        return None


def unpickled(text: str) -> Any:
    """Return the optimizer that a journal holds.

    Args:
        text: The pickle, in hexadecimal digits.

    Raises:
        UserError: If it is damaged, or asks for anything else than an optimizer is made of.
    """
    try:
        return _Unpickler(io.BytesIO(bytes.fromhex(text))).load()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"has a damaged state of CMA-ES ({error})", "journal of the search"
        ) from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _PARTS.get(module, ()):
            raise UserError(
                f"asks for {module}.{name}, which no state of CMA-ES has",
                "journal of the search",
                "Do not use this journal; begin the search anew under another `name`.",
            )
        return super().find_class(module, name)
