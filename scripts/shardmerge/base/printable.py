"""Text of strangers as it may be printed: what a terminal would act upon is shown instead."""

from __future__ import annotations

import unicodedata

#: Controls, format characters (bidi and zero-width ones among them), lone surrogates, line breaks.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def is_printable(text: str) -> bool:
    """Return whether a text is one line that shows as what it is."""
    return text.isprintable() or not any(map(_is_unseen, text))


def printable(text: str) -> str:
    r"""Return a text as one line, in which ``\x1b`` or ``\u202e`` stands for such a character."""
    if is_printable(text):
        return text
    return "".join(_shown(c) if _is_unseen(c) else c for c in text)


def printable_lines(text: str) -> str:
    """Return the same of a text of several lines, which stay."""
    return "\n".join(map(printable, text.split("\n")))


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN


def _shown(character: str) -> str:
    number = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
