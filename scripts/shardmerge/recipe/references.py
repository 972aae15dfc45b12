"""References to models as recipes write them: ``path``, ``path@revision``, ``path+lora``.

``owner/name:file`` is one file of a Hub repository.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardmerge.base.errors import UserError
from shardmerge.base.filenames import is_repo
from shardmerge.base.printable import is_printable

#: How files of weights end: safetensors, and those that are pickles.
WEIGHT_ENDS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Reference:
    """A model: folder, file, Hub repository or another document's name; a revision; an adapter.

    Args:
        path: As written, without revision.
        revision: Branch, tag or commit, or None.
        lora: Reference of a LoRA adapter to apply, or None.
    """

    path: str
    revision: str | None = None
    lora: str | None = None

    def __str__(self) -> str:
        text = f"{self.path}@{self.revision}" if self.revision else self.path
        return f"{text}+{self.lora}" if self.lora else text

    @property
    def model(self) -> str:
        """The reference without its adapter: a key of ``sources`` and of the lock."""
        return f"{self.path}@{self.revision}" if self.revision else self.path

    @property
    def names_file(self) -> bool:
        """Whether it names one file of weights, on this machine or in a repository."""
        return (self.lora or self.path).lower().endswith(WEIGHT_ENDS)

    @property
    def is_hub_name(self) -> bool:
        """Whether the path has the form ``owner/name`` of a Hub repository."""
        return is_repo(self.path)


def parse_reference(text: str, where: str | None = None) -> Reference:
    """Return the reference that a text writes.

    Raises:
        UserError: If it has two revisions or adapters, or an empty part.
    """
    if not is_printable(text):
        raise UserError(f"{text!r} has characters that do not show", where)
    model, *adapters = text.split("+")
    path, *revisions = model.split("@")
    if len(adapters) > 1:
        raise UserError(
            f"{text!r} names {len(adapters)} adapters",
            where,
            "A model takes one: merge `model+lora` and `model+lora` as two models.",
        )
    if len(revisions) > 1 or not all([path, *adapters, *revisions]):
        raise UserError(
            f"{text!r} is not a model reference",
            where,
            "Write `owner/name`, `folder`, `owner/name@revision` or `model+lora`.",
        )
    return Reference(path, *(revisions or [None]), *(adapters or [None]))
