"""What a recipe asks for where a model is to be written as a LoRA adapter of its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: The name that a stage of this kind has in the place of a merge method.
EXTRACT = "extract_lora"
#: Ways to make factors of an update: singular values of the whole, singular values by random
#: projection, and adapters put side by side.
DECOMPOSITIONS = ("exact", "randomized", "concatenate")


@dataclass(frozen=True)
class Extraction:
    """How a model becomes an adapter of its base.

    Args:
        rank: The largest rank of an update; None for all of what ``concatenate`` puts together.
        energy: Share of an update's sum of squares that is enough, or None.
        cut: Singular values up to it are left out, or None.
        alpha: ``lora_alpha`` of all modules, or None for each module's rank.
        modules: Ends of the names of modules that are adapted; empty for all matrices in layers.
        exclude: The same of modules that are not.
        save: The same of modules that are saved whole (``modules_to_save``).
        decomposition: One of ``DECOMPOSITIONS``.
        seed: Of random projections.
        dtype: Code of the factors' type.
        align: Whether adapters are merged in the space that their updates share.
        lines: File and line of each key that is given.
    """

    rank: int | None
    energy: float | None
    cut: float | None
    alpha: float | None
    modules: tuple[str, ...]
    exclude: tuple[str, ...]
    save: tuple[str, ...]
    decomposition: str
    seed: int
    dtype: str
    align: bool = False
    lines: Mapping[str, str] = field(default_factory=dict, compare=False)
