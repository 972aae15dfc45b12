"""What a form of export says of itself: one module has one, ``registry`` lists them all."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from shardmerge.export.record import ExportRecord
from shardmerge.plan.description import BuildDescription

#: Not in a file that is published.
_UNFIT = re.compile(r"[^\w.+-]")


class Form(ABC):
    """A form that finished models are exported to.

    A form has variants, such as the types of GGUF. The rules of a form make a folder and a record
    for each variant. What makes them a package (card, provenance, checksums) is the same for all.
    """

    #: Its key under ``exports`` in the configuration. Forms that differ little share one.
    key: ClassVar[str]
    #: The name that the Hub knows its library by.
    library: ClassVar[str]
    #: Whether it has a shard for each of the model's, called likewise, and the model's small files
    #: beside them, in one folder: its package is a model, and its only variant.
    mirrors: ClassVar[bool] = False
    #: The name of its folder.
    name: str
    #: What people call it; ends the names of its repositories.
    title: str

    @abstractmethod
    def variants(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of the variants that are asked for, none if the form is not.

        Args:
            options: The form's part of ``exports``.
        """

    @abstractmethod
    def check(self, options: Mapping[str, Any]) -> None:
        """Tell before any job what cannot be made.

        Raises:
            UserError: If so, with the key.
        """

    def check_model(
        self, options: Mapping[str, Any], name: str, description: Callable[[], BuildDescription]
    ) -> str | None:
        """Return what should be known of a model's export before any job, None if nothing.

        Args:
            options: The form's part of ``exports``.
            name: The model's.
            description: Gives that of the model.

        Raises:
            UserError: If the form cannot be made of the model.
        """
        return None

    @abstractmethod
    def identity(self, options: Mapping[str, Any], variant: str) -> Any:
        """Return what besides the model decides the content of a variant, as JSON-able data."""

    @abstractmethod
    def usage(self, package: str, records: Sequence[ExportRecord]) -> str:
        """Return the card's Markdown on how to use the files.

        Args:
            package: The package's name, or its repository.
            records: Of its variants.
        """

    def folder(self, variant: str) -> str:
        """Return where in its package the files of a variant are, "" for the package itself."""
        return "" if self.mirrors else variant

    def label(self, model: str, variant: str) -> str:
        """Return what a variant of a model is called in tables and file names."""
        return f"{_UNFIT.sub('-', model).lstrip('-.')}-{variant.upper()}"
