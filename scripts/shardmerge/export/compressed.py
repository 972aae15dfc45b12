"""Compressed safetensors: quantised weights as compressed-tensors stores them, for vLLM."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.markdown import block, code, table
from shardmerge.base.text import human_bytes
from shardmerge.export.form import Form
from shardmerge.export.record import ExportRecord
from shardmerge.export.schemes import SCHEMES, ExportScheme
from shardmerge.export.selection import (
    REGEX,
    STACKED_EXPERTS,
    check_selection,
    chosen_options,
    model_tensors,
    select,
    stacked_share,
    with_options,
)
from shardmerge.plan.description import BuildDescription


class Compressed(Form):
    """A model whose weights are quantised in one scheme.

    Args:
        scheme: Which one.
    """

    key = "compressed"
    library = "transformers"
    mirrors = True

    def __init__(self, scheme: ExportScheme) -> None:
        self.scheme = scheme
        self.name = scheme.name
        self.title = scheme.name.upper()

    def variants(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the scheme if it is asked for."""
        return (self.name,) if self.name in options["schemes"] else ()

    def check(self, options: Mapping[str, Any]) -> None:
        """Tell if the scheme needs calibration data, or a pattern is none."""
        if self.scheme.calibrated:
            offered = ", ".join(s.name for s in SCHEMES if not s.calibrated)
            raise UserError(
                f"{self.name} cannot be made from weights alone: {self.scheme.calibrated}",
                f"configuration: exports.{self.key}.schemes",
                f"Write {self.scheme.instead}, or make it from the merged model with "
                f"llm-compressor. Made here are {offered}.",
            )
        for pattern in options["ignore"] or ():
            try:
                re.compile(pattern.removeprefix(REGEX))
            except re.error as error:
                raise UserError(
                    f"{pattern!r} is no regular expression ({error})",
                    f"configuration: exports.{self.key}.ignore",
                ) from None

    def check_model(
        self, options: Mapping[str, Any], name: str, description: Callable[[], BuildDescription]
    ) -> str | None:
        """Tell if nothing of a model can be quantised, and how much of it are stacked experts."""
        chosen = chosen_options(self.scheme, options)
        scheme, tensors = with_options(self.scheme, chosen), model_tensors(description())
        selection = select(tensors, scheme, chosen["ignore"])
        check_selection(selection, tensors, scheme, f"model {name!r}")
        if not (share := stacked_share(selection, tensors)):
            return None
        return (
            f"{name}: {self.name} leaves {share:.0%} of the model as it is: {STACKED_EXPERTS}. "
            "Merge onto a base whose files have experts one by one to quantise "
            "them (docs/howto/compressed.md)"
        )

    def identity(self, options: Mapping[str, Any], variant: str) -> Any:
        """Return the scheme, and of the options what counts for it."""
        return [variant, chosen_options(self.scheme, options)]

    def usage(self, package: str, records: Sequence[ExportRecord]) -> str:
        """Return what is stored, how vLLM is started, and how far weights are from the model's."""
        (record,) = records
        errors = record.errors
        rows = [
            ["size", human_bytes(record.size)],
            ["bits per weight", f"{record.bits_per_weight:.2f}"],
            ["matrices that are quantised", str(len(errors.tensors))],
            ["matrices that are kept as they are", str(len(record.kept))],
            ["median error of a matrix", f"{errors.median:.2g}"],
            ["largest error of a matrix", f"{errors.largest:.2g}"],
        ]
        return (
            f"Stored as [compressed-tensors](https://github.com/vllm-project/compressed-tensors) "
            f"does: {self.scheme.about}. Nothing was calibrated: all follows from the weights.\n\n"
            f"{table(['what', 'of this model'], rows, numbers=True)}\n"
            "The error of a matrix is the root of the mean square of the differences to the "
            "model's values, in parts of that of the values. vLLM runs the model as it is stored, "
            f"and transformers unpacks it ({code('pip install compressed-tensors')}):\n\n"
            f"{block(f'vllm serve {package}', 'sh')}"
        )
