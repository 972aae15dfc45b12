"""The schemes of compressed-tensors that models are exported in, and those that are refused."""

from __future__ import annotations

from dataclasses import dataclass

#: Columns that a scale of whole numbers is for, where the configuration says nothing else.
GROUP_SIZE = 128
_SCALES = "the scales of activations are stored, and are measured on text that the model reads"


@dataclass(frozen=True)
class ExportScheme:
    """How weights and activations are stored and computed.

    Args:
        name: In the configuration, and of the folder.
        preset: What compressed-tensors calls it.
        about: What is stored, for people.
        columns: That a scale is for: the columns of a matrix must be a multiple. None if any are.
        grouped: Whether the configuration says how many these are.
        shared: Whether modules that run as one matrix must have the same overall scale.
        most: The largest median error that its rounding explains.
        runs: The type that transformers unpacks it to, if it is always the same.
        calibrated: Why it cannot be made from weights alone, if it cannot.
        instead: The scheme to write then.
    """

    name: str
    preset: str = ""
    about: str = ""
    columns: int | None = None
    grouped: bool = False
    shared: bool = False
    most: float = 0.0
    runs: str | None = None
    calibrated: str = ""
    instead: str = ""


SCHEMES = (
    ExportScheme(
        "fp8-dynamic",
        "FP8_DYNAMIC",
        "weights in FP8 (E4M3), a scale for each row; activations in FP8, scaled for each token "
        "while the model runs",
        most=0.05,
    ),
    ExportScheme(
        "fp8-block",
        "FP8_BLOCK",
        "weights in FP8 (E4M3), a scale for each block of 128 x 128; activations in FP8, scaled in "
        "groups of 128 while the model runs",
        columns=128,
        most=0.05,
    ),
    ExportScheme(
        "w8a8",
        "W8A8",
        "weights in int8, a scale for each row; activations in int8, scaled for each token while "
        "the model runs",
        most=0.05,
    ),
    ExportScheme(
        "w8a16",
        "W8A16",
        "weights in int8, a scale for each group of columns; activations as they are",
        columns=GROUP_SIZE,
        grouped=True,
        most=0.05,
    ),
    ExportScheme(
        "w4a16",
        "W4A16",
        "weights in 4-bit integers, a scale for each group of columns; activations as they are",
        columns=GROUP_SIZE,
        grouped=True,
        most=0.3,
    ),
    ExportScheme(
        "w4a16-asym",
        "W4A16_ASYM",
        "weights in 4-bit integers, a scale and a zero for each group of columns; activations as "
        "they are",
        columns=GROUP_SIZE,
        grouped=True,
        most=0.3,
    ),
    ExportScheme(
        "nvfp4a16",
        "NVFP4A16",
        "weights in NVFP4: 4-bit floats (E2M1), an FP8 scale for 16 columns and one scale for the "
        "matrix; activations as they are",
        columns=16,
        shared=True,
        most=0.3,
        runs="bfloat16",
    ),
    ExportScheme(
        "mxfp4a16",
        "MXFP4A16",
        "weights in MXFP4: 4-bit floats (E2M1), a power of two for 32 columns; activations as "
        "they are",
        columns=32,
        most=0.3,
        runs="bfloat16",
    ),
    ExportScheme("fp8", calibrated=_SCALES, instead="fp8-dynamic"),
    ExportScheme("nvfp4", calibrated=_SCALES, instead="nvfp4a16"),
    ExportScheme(
        "awq",
        calibrated="it scales columns by what activations they get on text that the model reads",
        instead="w4a16",
    ),
    ExportScheme(
        "gptq",
        calibrated="it corrects rounding by what the model computes on text that it reads",
        instead="w4a16",
    ),
)


def scheme_of(name: str) -> ExportScheme:
    """Return the scheme that the configuration calls so."""
    return {scheme.name: scheme for scheme in SCHEMES}[name]
