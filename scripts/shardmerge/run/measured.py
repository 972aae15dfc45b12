"""What benchmarks run on, and what besides decides their results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shardmerge.base.digest import digest
from shardmerge.base.files import sha256_of
from shardmerge.benchmark.options import EvalOptions


@dataclass(frozen=True)
class Measured:
    """A model that benchmarks run on.

    Args:
        name: Label, and name of the folder of its results.
        folder: Where its files are.
        files: All of them that must be there.
        identity: Digest of its content.
        size: Bytes of its weights.
        options: What the configuration says of measuring it.
        build: The build that it is an export of, None if it is none.
        tokenizer: Folder of the tokenizer, where it is not that of the model's files.
        questions: The most that it is asked of a task, whatever the configuration says, or None.
        adapter: Folder of the LoRA adapter that is put on it, or None.
        parent: The model, by its name, that it is made of and compared with, None for what recipes
            say.
        half: Questions that it is asked, ``even`` or ``odd``; None for what is configured.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    identity: str
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    build: str | None = None
    tokenizer: str | None = None
    questions: int | None = None
    half: str | None = None
    adapter: str | None = None
    parent: str | None = None

    def narrowed(self, options: EvalOptions) -> EvalOptions:
        """Return the options of a task, with no more questions than this model is asked."""
        half = self.half or options.half
        if self.questions is None:
            return replace(options, half=half)
        limit = options.limit
        fewer = limit is None or limit < 1 or self.questions < limit
        return replace(options, half=half, limit=self.questions if fewer else limit)


def folder_digest(folder: str | None) -> str | None:
    """Return the digest of a folder's files, or None without a folder."""
    if folder is None:
        return None
    files = sorted(
        p for p in Path(folder).rglob("*") if p.is_file() and "__pycache__" not in str(p)
    )
    return digest([[str(p.relative_to(folder)), sha256_of(p)] for p in files])
