"""Which group of scales a column belongs to, as a stored permutation tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.formats.interface import LogicalTensor

if TYPE_CHECKING:
    import numpy as np


def group_numbers(logical: LogicalTensor, stored: np.ndarray, groups: int) -> np.ndarray:
    """Return the group of every column.

    Args:
        logical: The tensor, for errors.
        stored: Whole numbers [columns].
        groups: How many groups have scales.

    Raises:
        UserError: If a number names a group that does not exist.
    """
    import numpy as np

    if stored.size and (stored.min() < 0 or stored.max() >= groups):
        wrong = stored.min() if stored.min() < 0 else stored.max()
        raise UserError(
            f"puts a column into group {wrong}, but has scales of {groups} groups",
            f"tensor {logical.name!r}",
            f"Its part {logical.parts['groups'].tensor!r} is broken.",
        )
    return stored.astype(np.int64)
