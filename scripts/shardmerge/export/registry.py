"""All forms of export. Another one is a module with its ``Form``, its rules, and its name here."""

from __future__ import annotations

from shardmerge.export.form import Form
from shardmerge.export.gguf import Gguf

EXPORT_FORMS: tuple[Form, ...] = (Gguf(),)


def form_of(name: str) -> Form:
    """Return the form that the configuration calls so."""
    return {form.name: form for form in EXPORT_FORMS}[name]
