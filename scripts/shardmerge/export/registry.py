"""All forms of export. Another one is a module with its ``Form``, its rules, and its name here."""

from __future__ import annotations

from shardmerge.export.compressed import Compressed
from shardmerge.export.form import Form
from shardmerge.export.gguf import Gguf
from shardmerge.export.schemes import SCHEMES

EXPORT_FORMS: tuple[Form, ...] = (Gguf(), *map(Compressed, SCHEMES))


def form_of(name: str) -> Form:
    """Return the form of that name."""
    return {form.name: form for form in EXPORT_FORMS}[name]
