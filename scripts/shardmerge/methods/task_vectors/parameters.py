"""The parameters of the methods that sparsify task vectors."""

from __future__ import annotations

from typing import Literal

from shardmerge.methods.contract import BOTH, Parameter

GAMMA = Parameter(
    "gamma",
    float,
    "model",
    default=0.01,
    minimum=0.0,
    maximum=1.0,
    description="Share of the largest magnitudes that is dropped.",
    examples=(0.01, 0.0, 0.3),
)
EPSILON = Parameter(
    "epsilon",
    float,
    "model",
    default=0.15,
    minimum=0.0,
    maximum=1.0,
    description="The probability of being kept goes from density - epsilon to density + epsilon.",
    examples=(0.01, 0.02, 0.04),
)
SEED = Parameter(
    "seed", int, default=0, description="Seed of the random choice; mergekit has no such key."
)
#: torch, which mergekit draws with, has no probabilities below 0.
_CHANCE: frozenset[Literal["minimum", "maximum"]] = frozenset({"maximum"})


def sparsifying(normalize: bool, rescale: bool, *more: Parameter) -> list[Parameter]:
    """Return the parameters of a method that sparsifies task vectors.

    Args:
        normalize, rescale: Their defaults.
        more: What the method has besides.
    """
    return [
        Parameter("weight", float, "model", description="Weight of the model's task vector."),
        Parameter(
            "density",
            float,
            "model",
            default=1.0,
            minimum=0.0,
            maximum=1.0,
            clamped=_CHANCE if more == (SEED,) else BOTH,
            description="Share of the task vector that is kept.",
            examples=(0.5, 0.0, 0.05, 0.3, 0.77, 1.0),
        ),
        *more,
        Parameter(
            "normalize",
            bool,
            default=normalize,
            description="Divide by the sum of the weights (that agree in sign).",
        ),
        Parameter(
            "rescale",
            bool,
            default=rescale,
            description="Scale what is kept to the L1 norm of the whole task vector.",
        ),
        Parameter(
            "lambda",
            float,
            default=1.0,
            description="Factor of the summed task vectors.",
            examples=(1.0, 0.5, 1.3),
        ),
        Parameter(
            "int8_mask",
            bool,
            default=False,
            idle=True,
            description="Type of mergekit's sign masks. It changes no result.",
        ),
    ]
