"""What is known of a build's source files: hashed whole, or known by a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.hashing import sha256_streamed
from shardmerge.base.identities import Identities, stamp_of
from shardmerge.plan.description import BuildDescription, DescribedSource

_CHANGED = (
    "If that was not meant, restore the file. Else run `snakemake lock`, which writes its SHA-256 "
    "into the lock, so that all that was made of the former content is made anew."
)
_SAMPLE, _HASHED, _SAMPLED = "sample:", "hashed", "sampled"


def hash_source(path: Path, identity: str, identities: Identities) -> dict[str, Any]:
    """Hash a large local file, and compare it with its lock and with what it was before.

    Args:
        path: The file.
        identity: What the lock knows it by: its SHA-256, or a sample.
        identities: Knows what earlier jobs found, and keeps what this one does.

    Returns:
        What was found, as JSON-able data.

    Raises:
        UserError: If it is another than was locked or hashed before, or changes meanwhile.
    """
    stamp = stamp_of(path)
    sample = identities.of(path).sample
    sha256 = sha256_streamed(path)
    if stamp_of(path) != stamp:
        raise UserError("changed while it was read", str(path), "Run the workflow again.")
    before = identities.learn(path, stamp, sample, sha256) if sample else sha256
    kind, _, value = identity.partition(":")
    if kind == "sha256":
        before = value
    elif sample != value:
        raise UserError("has another content than when it was locked", str(path), _CHANGED)
    if before != sha256:
        raise UserError(
            f"has another content than when it was {'locked' if kind == 'sha256' else 'hashed'}, "
            f"where its sample does not tell it (SHA-256 {sha256}, before {before})",
            str(path),
            _CHANGED,
        )
    return {"passed": True, "identity": identity, "sha256": sha256, "size": stamp.size}


def known_hashes(tables: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the SHA-256 of each file that is known by a sample, by that sample.

    Args:
        tables: What jobs found: identity to SHA-256.

    Raises:
        UserError: If two jobs found different contents with one sample.
    """
    found: dict[str, str] = {}
    for table in tables:
        for identity, sha256 in table.items():
            if found.setdefault(identity, sha256) != sha256:
                raise UserError(
                    f"a source file changed where its sample does not tell it: one job read "
                    f"{found[identity]}, another {sha256} (SHA-256)",
                    identity,
                    "Delete the folders `model` and `records` of this build, then run the workflow "
                    "with `sources_check: full`.",
                )
    return dict(sorted(found.items()))


def source_states(description: BuildDescription, known: Mapping[str, str]) -> dict[str, int]:
    """Return how many source files of a build were hashed whole, and how many sampled.

    Args:
        description: Of the build.
        known: SHA-256 of files by their sample.
    """
    states = [state(i, known) for s in description.sources.values() for i in s.files.values()]
    return {name: states.count(name) for name in (_HASHED, _SAMPLED)}


def state(identity: str, known: Mapping[str, str]) -> str:
    """Return whether the file of an identity was ``hashed`` or only ``sampled``."""
    return _SAMPLED if identity.startswith(_SAMPLE) and identity not in known else _HASHED


def with_states(source: DescribedSource, known: Mapping[str, str]) -> dict[str, Any]:
    """Return a source as provenance tells it: of each file how it was checked.

    Args:
        source: Its row in the build's description.
        known: SHA-256 of files by their sample.
    """
    files = source.files
    hashes = {name: known[identity] for name, identity in files.items() if identity in known}
    checked = {name: state(identity, known) for name, identity in files.items()}
    return forms.written(source) | {"checked": checked} | ({"sha256": hashes} if hashes else {})
