"""What makes the files of an export a package: its card, its provenance, its checksums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shardmerge import __version__
from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.front_matter import card_text
from shardmerge.base.markdown import code
from shardmerge.export.form import Form
from shardmerge.export.record import ExportRecord

EXPORT_VERSION = 1
_TAGS = ("mergekit", "merge", "shardmerge")


def export_card(
    form: Form,
    name: str,
    settings: Mapping[str, Any],
    records: Sequence[ExportRecord],
    model: str | None = None,
    repository: str | None = None,
) -> str:
    """Return the text of an export's README.md.

    Args:
        form: The form.
        name: The model's.
        settings: The configuration's ``card`` of the model.
        records: Of all variants.
        model: The model's repository, if it is published.
        repository: The export's, likewise.

    Raises:
        UserError: If the front matter is not what was put into it.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=model,
        base_model_relation="quantized" if model else None,
        library_name=form.library,
        pipeline_tag=settings.get("pipeline_tag") or "text-generation",
        tags=list(dict.fromkeys([*_TAGS, form.name, *(settings.get("tags") or [])])),
        license=settings.get("license") or "other",
    )
    parts = [f"# {name}: {form.title}\n"]
    if settings.get("description"):
        parts.append(settings["description"].strip() + "\n")
    parts += ["## Files\n", form.usage(repository or name, records)]
    if settings.get("prompt_format"):
        parts += ["## Prompt format\n", settings["prompt_format"].strip() + "\n"]
    parts += ["## How it was made\n", _how(form, name, model, records)]
    return card_text(data, "\n".join(parts), f"export of model {name!r}")


def export_provenance(
    form: Form, name: str, records: Sequence[ExportRecord], model_provenance: str
) -> dict[str, Any]:
    """Return the provenance of an export as JSON-able data: no times, machines or paths.

    Args:
        form: The form.
        name: The model's.
        records: Of all variants.
        model_provenance: SHA-256 of the model's provenance.json.
    """
    return {
        "version": EXPORT_VERSION,
        "form": form.name,
        "name": name,
        "model": {"build": records[0].build, "provenance_sha256": model_provenance},
        "shardmerge": __version__,
        "variants": {record.variant: forms.written(record) for record in records},
        "outputs": {
            name: {"sha256": sha256} for name, sha256 in export_files(form, records).items()
        },
    }


def export_files(form: Form, records: Sequence[ExportRecord]) -> dict[str, str]:
    """Return the SHA-256 of all files of an export's variants, by their paths in the package."""
    return {
        f"{folder}/{name}" if (folder := form.folder(record.variant)) else name: file.sha256
        for record in records
        for name, file in record.files.items()
    }


def check_same_model(records: Sequence[ExportRecord], build: str) -> None:
    """Refuse records of an export that was made from an earlier model.

    Raises:
        UserError: If there is one.
    """
    for record in records:
        if record.build != build:
            raise UserError(
                "was made from an earlier model",
                f"export {record.form} {record.variant}",
                "Delete it and run the workflow again.",
            )


def _how(form: Form, name: str, model: str | None, records: Sequence[ExportRecord]) -> str:
    tools = sorted({pair for record in records for pair in record.tools.items()})
    made = ", ".join(f"{tool} {code(version)}" for tool, version in tools)
    errors = [record.errors for record in records]
    compared = max(e.compared for e in errors)
    others = max(len(e.not_compared) for e in errors)
    rows = errors[0].rows
    extent = "all their values" if rows is None else f"at most {rows} rows of each"
    rest = f" {others} others have no counterpart that could be compared." if others else ""
    return (
        f"Made by shardmerge {__version__} from the verified model {code(model or name)} with "
        f"{made}. {compared} tensors were read back and compared with the model, "
        f"{extent}.{rest} `provenance.json` has the error of every tensor, "
        "and the SHA-256 of every file.\n"
    )
