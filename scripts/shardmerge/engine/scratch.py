"""Room that a thread uses again for what it makes on the way: new pages take the kernel's time."""

from __future__ import annotations

import threading

import numpy as np

_HERE = threading.local()


def scratch(name: str, size: int, kind: str | type[np.generic]) -> np.ndarray:
    """Return this thread's room of a name, [size] numbers of any value.

    It is lent until the thread asks for the same name again.

    Args:
        name: Of who asks, one for each use.
        size: Numbers.
        kind: Their type, always the same for a name.
    """
    held = _HERE.__dict__
    if name not in held or held[name].size < size:
        held[name] = np.empty(size, kind)
    return held[name][:size]
