"""What one shard's job is told: pure content, no paths; its digest is the job's identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra.json import from_json, source_to_json, to_json
from shardmerge.algebra.leaves import FileLeaf, file_leaves, leaf_sources
from shardmerge.algebra.patterns import Write, alike, json_text, one_of_each
from shardmerge.base.digest import canonical_json, digest, quoted
from shardmerge.base.numerics import FLOAT32, Numerics
from shardmerge.methods.registry import version_of

#: Changes when the engine's bytes change for the same specification (golden tests watch it); where
#: those of one method change, its own version does.
ENGINE_VERSION = 1


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of an output shard: its name, stored type and shape, and what it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    expression: ex.Expression

    def text(self, expression: str) -> str:
        """Return it as canonical JSON, given that of its expression."""
        head, tail = _around(self.dtype, self.shape)
        return f'{head}{expression},"name":{quoted(self.name)}{tail}'


@cache
def _around(dtype: str, shape: tuple[int, ...]) -> tuple[str, str]:
    """Return what stands around expression and name: few types and shapes are those of all."""
    return f'{{"dtype":{quoted(dtype)},"expression":', f',"shape":{canonical_json(shape)}}}'


@dataclass(frozen=True)
class ShardSpec:
    """All that determines the bytes of one safetensors file that a job writes.

    Args:
        tensors: In the order of their data in the file.
        files: For each (model, file) that the expressions name, the content's identity
            (``sha256:...`` or ``sample:...``), in order of first use.
        numerics: How it is computed.
        allow_nonfinite: Whether a merged value may be infinite or NaN where no source is. It
            decides whether there are bytes, not which, so that it is no part of the digest.
        metadata: The header's ``__metadata__``.
    """

    tensors: tuple[OutputTensor, ...]
    files: Mapping[tuple[str, str], str]
    numerics: Numerics = FLOAT32
    allow_nonfinite: bool = False
    metadata: Mapping[str, str] | None = None

    @property
    def text(self) -> str:
        """The specification as canonical JSON; ``from_json`` inverts what it says."""
        return self._text(source_to_json, {key: key[1] for key in self.files}, self._facts())

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON-able data."""
        return json.loads(self.text)

    def _facts(self) -> dict[str, Any]:
        """Return all but the tensors."""
        return {
            "engine": ENGINE_VERSION,
            **self._versions(),
            "numerics": self.numerics,
            "allow_nonfinite": self.allow_nonfinite,
            "metadata": dict(self.metadata or {"format": "pt"}),
            "files": [[model, file, identity] for (model, file), identity in self.files.items()],
        }

    def _text(
        self, write: Write, names: Mapping[tuple[str, str], str], facts: Mapping[str, Any]
    ) -> str:
        """Return it as canonical JSON, with a name for each file."""
        texts = {key: canonical_json(value) for key, value in facts.items()}
        files = {key: quoted(name) for key, name in names.items()}
        tensors = [t.text(json_text(t.expression, write, files)) for t in self.tensors]
        texts["tensors"] = f"[{','.join(tensors)}]"
        return f"{{{','.join(f'{quoted(key)}:{texts[key]}' for key in sorted(texts))}}}"

    def _versions(self) -> dict[str, dict[str, int]]:
        """Return the versions of the methods that are called, where one is not the first."""
        kinds = one_of_each(t.expression for t in self.tensors)
        names = sorted({name for kind in kinds for name in alike(kind, _called)})
        versions = {name: version_of(name, self.numerics) for name in names}
        later = {name: version for name, version in versions.items() if version != 1}
        return {"versions": later} if later else {}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ShardSpec:
        """Return the specification that ``to_json`` wrote."""
        return cls(
            tensors=tuple(
                OutputTensor(t["name"], t["dtype"], tuple(t["shape"]), from_json(t["expression"]))
                for t in data["tensors"]
            ),
            files={(model, file): identity for model, file, identity in data["files"]},
            numerics=Numerics(data["numerics"]),
            allow_nonfinite=data["allow_nonfinite"],
            metadata=data["metadata"],
        )

    @property
    def digest(self) -> str:
        """The job's identity, 64 hexadecimal digits: SHA-256 of what determines the bytes.

        Source tensors count by the identity of the file that holds them, not by the names of
        model and file, so that a source moved or renamed rebuilds nothing.
        """
        facts = self._facts()
        del facts["files"], facts["allow_nonfinite"]
        text = self._text(_anonymous, self.files, facts)
        return hashlib.sha256(text.encode()).hexdigest()

    def required_files(self, stored: Collection[ex.Delta] = ()) -> tuple[tuple[str, str], ...]:
        """Return the (model, file) pairs that must be open, in order of first use.

        Args:
            stored: Task vectors that lie on disk as delta shards, so that what they are made of
                is not read again.
        """
        return files_of(self.leaves(stored))

    def leaves(self, stored: Collection[ex.Delta] = ()) -> tuple[FileLeaf, ...]:
        """Return all that is read, each once, in order of first use; ``stored`` as above."""
        leaves = (leaf for t in self.tensors for leaf in file_leaves(t.expression, stored))
        return tuple(dict.fromkeys(leaves))


def _anonymous(source: ex.Source, file: str, tensor: str) -> list[str]:
    return [file, tensor]


def _called(expression: ex.Expression) -> frozenset[str]:
    return frozenset(p.method for p in ex.walk(expression) if isinstance(p, ex.Call))


def files_of(leaves: Iterable[FileLeaf]) -> tuple[tuple[str, str], ...]:
    """Return the (model, file) pairs that leaves are read from, in order of first use."""
    sources = (source for leaf in leaves for source in leaf_sources(leaf))
    return tuple(dict.fromkeys([(source.model, source.file) for source in sources]))


def delta_name(delta: ex.Delta, files: Mapping[tuple[str, str], str]) -> str:
    """Return the name of a stored task vector's tensor: 32 digits of its content's digest.

    It depends on what the delta is and on the identity of the files it is made of, not on
    the names that a recipe gives the models, so that recipes share stored deltas safely.
    """

    def content(expression: ex.Expression) -> Any:
        if isinstance(expression, ex.Source):
            return [files[expression.model, expression.file], expression.tensor]
        if isinstance(expression, ex.Decoded | ex.Arranged):
            return to_json(expression, content)
        return [type(expression).__name__, *map(content, ex.operands(expression))]

    return digest([ENGINE_VERSION, content(delta), delta.dtype])[:32]
