"""Text of strangers, made safe to print: what a terminal would act upon is spelt out."""

from __future__ import annotations

import unicodedata

#: Controls, lone surrogates, line breaks.
_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
#: The same and format characters: marks that reorder a line, zero-width ones.
_UNSEEN = _CONTROLS | {"Cf"}
#: Marks that reorder a line. (Zero-width joiners do not; some scripts need them.)
_BIDI = frozenset(map(chr, (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))
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


def first_harmful(text: str) -> str | None:
    """Return the first control character or mark that reorders a line, or None."""
    if text.isprintable():
        return None
    return next((c for c in text if c in _BIDI or unicodedata.category(c) in _CONTROLS), None)


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN


def _shown(character: str) -> str:
    number = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
