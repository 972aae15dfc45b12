"""Text for a terminal: its width, its colours, its characters."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Terminal:
    """What a stream can show.

    Args:
        width: Columns.
        colour: Whether escape sequences are understood.
        unicode: Whether block characters can be written.
    """

    width: int = 100
    colour: bool = False
    unicode: bool = True

    @classmethod
    def of(cls, stream: TextIO) -> Terminal:
        """Return the terminal that a stream writes to; colour only on one that wants it."""
        plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        encoding = (getattr(stream, "encoding", None) or "ascii").lower()
        return cls(
            width=max(40, min(shutil.get_terminal_size((100, 40)).columns, 140)),
            colour=stream.isatty() and not plain,
            unicode=encoding.replace("-", "") == "utf8",
        )

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self.colour else text

    def dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.colour else text

    def bar(self, share: float, length: int) -> str:
        """Return a bar of a share of ``length`` columns, padded to it."""
        share = min(max(share, 0.0), 1.0)
        if not self.unicode:
            return ("#" * round(share * length)).ljust(length)
        full, eighths = divmod(round(share * length * 8), 8)
        return ("█" * full + _EIGHTHS[eighths].strip()).ljust(length)

    def table(self, rows: Sequence[Sequence[str]], indent: int = 2) -> list[str]:
        """Return rows of texts as lines of aligned columns, each line at most as wide as it is."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
        return [(" " * indent + line).rstrip()[: self.width] for line in lines]
