"""The lock: from what, exactly, a recipe is built. Stable text, made once, read at every parse."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

from shardmerge.base.errors import UserError
from shardmerge.base.files import line_of, parse_object, read_text
from shardmerge.base.identities import LockedFile
from shardmerge.base.weightfolders import in_folder, own_name
from shardmerge.sources.lockschema import LockError, check_lock, folder_by_role, told
from shardmerge.sources.store import Origin, Store
from shardmerge.sources.stores import store_type
from shardmerge.sources.tokenizer.vocabulary import Vocabulary

LOCK_VERSION = 1
_RESTORE = "Restore it from version control, or run `snakemake lock` to renew it."


class LockedTensor(NamedTuple):
    """A tensor of a source: file, dtype code, shape, byte range in the file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class LockedSource:
    """A source model.

    Args:
        kind: Of its store: ``hub``, ``local`` or another of ``stores.STORES``.
        repo: Repository on the Hub, or None.
        revision: Revision as asked for (branch, tag or commit), or None.
        commit: The 40-hex commit that it was at, or None for a folder.
        config: The model's config.json, parsed.
        files: By name: weights, config, tokenizer and all else of the model but pickles.
        tensors: By name, as they lie in files (``as_in_files``).
        role: ``model``, ``adapter`` (then config is its adapter_config.json), or ``checkpoint``,
            of which only tensors are known (config is empty).
        vocabulary: Its tokenizer's tokens, where a recipe needs them (without tokens if it has no
            tokenizer); None where none did.
        chat_template: Its chat template ("" if it has none), likewise.
        tokens: Digest of its tokens by id, where it was needed to compare models.
        side_files: Files beside config.json that say how weights are quantised, parsed, by name.
        contents: Bytes of small tensors that decide the shape of a quantised weight, by name.
        prompts: Ids of the tokens of texts that a recipe's routers are made from, by text.
        special_tokens: Its special tokens by what they are for, where a recipe compares them.
        left_out: Files of weights beside a checkpoint's that are no part of it.
        one_file: Whether it is a file that was asked for by its name, whatever folder it is in.
    """

    kind: str
    repo: str | None
    revision: str | None
    commit: str | None
    config: Mapping[str, Any]
    files: Mapping[str, LockedFile]
    tensors: Mapping[str, LockedTensor] = field(default_factory=dict)
    role: str = "model"
    vocabulary: Vocabulary | None = None
    chat_template: str | None = None
    tokens: str | None = None
    side_files: Mapping[str, Any] = field(default_factory=dict)
    contents: Mapping[str, bytes] = field(default_factory=dict)
    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    special_tokens: Mapping[str, str] | None = None
    left_out: tuple[str, ...] = ()
    one_file: bool = False

    @property
    def store(self) -> type[Store]:
        """The kind of place that it is from."""
        return store_type(self.kind)

    @property
    def origin(self) -> Origin:
        """What pins it, if it is not on this machine."""
        return Origin(self.repo, self.revision, self.commit)

    @property
    def told(self) -> str:
        """Where it is from, in words for the middle of a sentence."""
        return self.store.told(self.origin)

    def folder_of(self, file: str) -> str:
        """Return the folder with weights of its own that a file of it lies in, "" if none."""
        return folder_by_role(self.role, one_file=self.one_file)(file)

    def has_contents_of(self, other: LockedSource) -> bool:
        """Whether two locks pin the same bytes of a model.

        What a lock notes of a tokenizer follows from these, and depends on what a recipe needs;
        what it notes of how weights are quantised follows too. What is left out is not merged.
        """
        noted = {"revision": None, "vocabulary": None, "chat_template": None, "tokens": None}
        noted |= {"side_files": {}, "contents": {}, "prompts": {}, "special_tokens": None}
        noted |= {"left_out": (), "one_file": False}
        return replace(self, **noted) == replace(other, **noted)


@dataclass(frozen=True)
class Lock:
    """All that one recipe file is built from.

    Args:
        sources: Models and adapters, by the reference that the recipe writes.
        texts: Files of text that models are measured with, by path.
    """

    sources: Mapping[str, LockedSource]
    texts: Mapping[str, LockedFile] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data, short: tensors by file, a vocabulary once for all that have it."""
        found = [s.vocabulary for s in self.sources.values() if s.vocabulary is not None]
        vocabularies = {v.digest: v.text for v in sorted(found, key=lambda v: v.digest)}
        return {
            "version": LOCK_VERSION,
            "sources": {name: _source_to_json(s) for name, s in sorted(self.sources.items())},
        } | {
            key: found
            for key, found in (
                ("texts", {n: _file_row(file) for n, file in sorted(self.texts.items())}),
                ("vocabularies", vocabularies),
            )
            if found
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str, text: str = "") -> Lock:
        """Return the lock that ``to_json`` wrote.

        Args:
            data: What was written.
            where: What to say in errors.
            text: The file's text, so that errors can tell the line.

        Raises:
            UserError: If it is of another version, or has anything that a lock cannot have.
        """
        if not isinstance(data, Mapping) or data.get("version") != LOCK_VERSION:
            raise UserError(
                f"is not a lock of version {LOCK_VERSION}",
                where,
                "Run `snakemake lock` to renew it.",
            )
        try:
            check_lock(data)
        except LockError as error:
            line = line_of(text, error.path)
            raise UserError(
                f"{told(error.path)}: {error.message}" if error.path else error.message,
                f"{where}:{line}" if line else where,
                " ".join(filter(None, [error.hint, _RESTORE])),
            ) from None
        texts = {
            name: Vocabulary(text, name, f"{where}: vocabulary {name}")
            for name, text in data.get("vocabularies", {}).items()
        }
        return cls(
            {n: _source_from_json(s, texts) for n, s in data["sources"].items()},
            {n: LockedFile(**row) for n, row in data.get("texts", {}).items()},
        )


def as_in_files(tensors: Mapping[str, LockedTensor]) -> dict[str, LockedTensor]:
    """Return tensors in the order of their files and of their places there, as locks have them."""
    return dict(sorted(tensors.items(), key=lambda item: (item[1].file, item[1].begin, item[0])))


def read_lock(path: str | os.PathLike[str]) -> Lock:
    """Return the lock in a file.

    Raises:
        UserError: If it cannot be read, or as ``Lock.from_json``; tells the line where it can.
    """
    text = read_text(path)
    return Lock.from_json(parse_object(text, str(path)), str(path), text)


def _source_to_json(source: LockedSource) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for name, file in sorted(source.files.items()):
        files[name] = _file_row(file)
    for name, t in as_in_files(source.tensors).items():
        table = files[t.file].setdefault("tensors", {})
        table[own_name(name, source.folder_of(t.file))] = [t.dtype, list(t.shape), t.begin, t.end]
    row = {"kind": source.kind, "repo": source.repo, "revision": source.revision}
    row |= {"commit": source.commit, "role": None if source.role == "model" else source.role}
    row |= {"vocabulary": None if source.vocabulary is None else source.vocabulary.digest}
    row |= {"chat_template": source.chat_template, "tokens": source.tokens}
    row |= {"side_files": dict(sorted(source.side_files.items())) or None}
    contents = {n: b64encode(c).decode() for n, c in sorted(source.contents.items())}
    row |= {"contents": contents or None}
    prompts = {text: list(ids) for text, ids in sorted(source.prompts.items())}
    special = source.special_tokens
    row |= {
        "prompts": prompts or None,
        "special_tokens": None if special is None else dict(special),
        "left_out": list(source.left_out) or None,
        "one_file": source.one_file or None,
    }
    return {k: v for k, v in row.items() if v is not None} | {
        "config": dict(source.config),
        "files": files,
    }


def _file_row(file: LockedFile) -> dict[str, Any]:
    row = {"size": file.size, "sha256": file.sha256}
    row |= {"git_oid": file.git_oid, "sample": file.sample}
    return {key: value for key, value in row.items() if value is not None}


def _source_from_json(
    data: Mapping[str, Any], vocabularies: Mapping[str, Vocabulary]
) -> LockedSource:
    files: dict[str, LockedFile] = {}
    tensors: dict[str, LockedTensor] = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    folder = folder_by_role(data.get("role"), one_file=data.get("one_file", False))
    for name, row in data["files"].items():
        files[name] = LockedFile(
            row["size"], row.get("sha256"), row.get("git_oid"), row.get("sample")
        )
        if table := row.get("tensors"):
            within = folder(name)
            names = [in_folder(within, tensor) for tensor in table] if within else table
            tensors |= zip(names, _tensors_from_json(name, table, shapes), strict=True)
    return LockedSource(
        kind=data["kind"],
        repo=data.get("repo"),
        revision=data.get("revision"),
        commit=data.get("commit"),
        config=data["config"],
        files=files,
        tensors=tensors,
        role=data.get("role", "model"),
        vocabulary=vocabularies[data["vocabulary"]] if "vocabulary" in data else None,
        chat_template=data.get("chat_template"),
        tokens=data.get("tokens"),
        side_files=data.get("side_files", {}),
        contents={n: b64decode(text) for n, text in data.get("contents", {}).items()},
        prompts={text: tuple(ids) for text, ids in data.get("prompts", {}).items()},
        special_tokens=data.get("special_tokens"),
        left_out=tuple(data.get("left_out", ())),
        one_file=data.get("one_file", False),
    )


def _tensors_from_json(
    file: str, table: Mapping[str, Any], shapes: dict[tuple[int, ...], tuple[int, ...]]
) -> Iterable[LockedTensor]:
    """Return the tensors of a file in the table's order; equal shapes become one object."""
    dtypes, sizes, begins, ends = zip(*table.values(), strict=True)
    found = list(map(tuple, sizes))
    columns = repeat(file), dtypes, map(shapes.setdefault, found, found), begins, ends
    return map(partial(tuple.__new__, LockedTensor), zip(*columns))  # noqa: B905 - one has no end
