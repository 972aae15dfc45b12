"""GGUF, the form of llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import near_path, sha256_of
from shardmerge.base.markdown import block, table
from shardmerge.base.text import human_bytes, parse_size
from shardmerge.export.form import Form
from shardmerge.export.record import ExportRecord

#: Types that keep every value's sign and exponent, by the code of the model's own type.
PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
#: Types that llama-quantize refuses, or that are of no use, without an importance matrix.
NEEDS_IMATRIX = frozenset(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "q2_k_s"))


class Gguf(Form):
    """A file, or split ones, of each type that is asked for."""

    key = name = "gguf"
    title = "GGUF"
    library = "gguf"

    def variants(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the types that are asked for."""
        return tuple(options["types"])

    def check(self, options: Mapping[str, Any]) -> None:
        """Tell if a type needs calibration data and there are none, or a size is none."""
        needing = [kind for kind in options["types"] if kind in NEEDS_IMATRIX]
        if needing and not options["imatrix"]:
            raise UserError(
                f"{needing[0]} is of no use without an importance matrix",
                "configuration: exports.gguf.types",
                "Name a text to measure it on as `exports: {gguf: {imatrix: TEXT}}`.",
            )
        if options["imatrix"] and not Path(options["imatrix"]).is_file():
            hint = near_path(options["imatrix"]) or "It is a text that the model reads."
            where = "configuration: exports.gguf.imatrix"
            raise UserError(f"{options['imatrix']!r} is no file", where, hint)
        parse_size(options["split_size"])

    def identity(self, options: Mapping[str, Any], variant: str) -> Any:
        """Return the type, the text of the importance matrix by content, and the size of files."""
        text = options["imatrix"]
        measured = None if text is None or variant in PLAIN.values() else sha256_of(text)
        return [variant, measured, parse_size(options["split_size"])]

    def usage(self, package: str, records: Sequence[ExportRecord]) -> str:
        """Return how llama.cpp is started, and a table of the files."""
        rows = [
            [
                f"`{name}`",
                human_bytes(file.size),
                f"{record.bits_per_weight:.2f}",
                f"{record.errors.median:.2g}",
            ]
            for record in records
            for name, file in sorted(record.files.items())
        ]
        header = ["file", "size", "bits per weight", "median error"]
        first = records[0]
        path = f"{first.variant}/{min(first.files)}"
        return (
            f"{table(header, rows, numbers=True)}\nThe error of a tensor is the root of the mean "
            "square of the differences to the model's values, in parts of that of the values. "
            "Each file, or each folder of split files, is a whole model:\n\n"
            f"{block(f'llama-cli -m {path}', 'sh')}"
        )
