"""Which numerics there are."""

from __future__ import annotations

MERGEKIT = "mergekit-0.1.5"
NUMERICS = ("float32", MERGEKIT)
