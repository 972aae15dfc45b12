"""Signatures of models by OpenSSF's model-signing: with a key, or by sigstore for an account.

What is signed is what SHA256SUMS lists, and that file. Keys and passwords are handed to the
library and stand in no message.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path
from shardmerge.package.finished import SUMS, read_sums
from shardmerge.package.signature import read_signature
from shardmerge.plan.paths import SIGNATURE

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig

#: Of a key that is encrypted: the variable of the environment that has its password.
PASSWORD = "SHARDMERGE_SIGNING_PASSWORD"
#: In no signature: the file itself, and what the Hub's client keeps in a folder.
_IGNORED = (SIGNATURE, ".cache")


@dataclass(frozen=True)
class Signer:
    """Who must have signed a model.

    Args:
        key: Public key in PEM, or None.
        identity: Account of sigstore, such as a mail address, where there is no key.
        issuer: Who says that the account is who it is, such as ``https://accounts.google.com``.
    """

    key: Path | None = None
    identity: str | None = None
    issuer: str | None = None

    def __str__(self) -> str:
        return f"the key {self.key}" if self.key else f"{self.identity} of {self.issuer}"


def check_can_sign() -> None:
    """Tell if model-signing is not there.

    Raises:
        UserError: If so.
    """
    if find_spec("model_signing") is None:
        raise UserError(
            "signatures need the package model-signing, which is not installed",
            hint="Run `make env-sign`, or `pip install -r requirements-sign.txt`.",
        )


def sign(folder: Path, output: Path, key: Path | None) -> None:
    """Sign a finished folder: a model, an adapter or an export.

    Args:
        folder: It.
        output: The signature's file.
        key: Private key (EC, in PEM); None for sigstore, which knows this process by the machine
            it runs on (``id-token`` of a CI), or asks a browser.

    Raises:
        UserError: If it cannot be signed.
    """
    check_can_sign()
    from model_signing.signing import Config

    config = Config().set_hashing_config(_hashing(folder))
    try:
        if key is None:
            config.use_sigstore_signer(use_ambient_credentials=True)
        else:
            password = os.environ.get(PASSWORD)
            # the library wants bytes, whatever its annotation says
            config.use_elliptic_key_signer(
                private_key=key, password=password.encode() if password else None
            )
        with atomic_path(output) as part:
            config.sign(folder, part)
    except UserError:
        raise
    except Exception as error:  # of four libraries; none of their texts is told, for keys' sake
        raise UserError(
            f"could not be signed ({type(error).__name__})",
            str(folder),
            "sigstore needs a network and an account." if key is None else _key_hint(key),
        ) from None


def check_signature(folder: Path, signer: Signer, path: Path | None = None) -> int:
    """Make sure that a folder's files are those that somebody signed.

    Args:
        folder: The model's.
        signer: Who must have signed.
        path: The signature; None for ``model.sig`` in the folder.

    Returns:
        How many files the signature is of.

    Raises:
        UserError: If not.
    """
    check_can_sign()
    from model_signing.verifying import Config

    path = path or folder / SIGNATURE
    told = read_signature(path)
    if told.by_key is (signer.key is None):
        made, asked = ("a key", "an account") if told.by_key else ("sigstore", "a key")
        hint = "Give `--key`." if told.by_key else "Give `--identity` and `--issuer`."
        raise UserError(f"was made with {made}, and {asked} is asked for", str(path), hint)
    listed = {*read_sums(folder), SUMS}
    if wrong := sorted(listed ^ set(told.files)):
        which = "is signed and not listed" if wrong[0] in told.files else "is listed and not signed"
        raise UserError(f"{wrong[0]!r} {which} by {SUMS}", str(path))
    config = Config().set_hashing_config(_hashing(folder))
    try:
        if signer.key:
            config.use_elliptic_key_verifier(public_key=signer.key)
        else:
            config.use_sigstore_verifier(identity=signer.identity, oidc_issuer=signer.issuer)
    except Exception as error:
        if signer.key:
            raise UserError("is no public key in PEM", str(signer.key)) from None
        raise UserError(
            f"sigstore cannot be asked ({type(error).__name__})", hint="It needs a network."
        ) from None
    try:
        config.verify(folder, path)
    except Exception as error:  # of four libraries
        raise UserError(
            f"is no signature of these files by {signer} ({type(error).__name__})",
            str(path),
            "The files are not those that were signed, or another key signed them.",
        ) from None
    return len(listed)


def _hashing(folder: Path) -> HashingConfig:
    """Return how model-signing hashes: the files that SHA256SUMS lists, and that file."""
    from model_signing import hashing

    class Listed(hashing.Config):
        """Hashes the files of a list, whatever else a folder has."""

        def hash(self, model_path: Path, *, files_to_hash: Sequence[Path] | None = None) -> object:
            """Return the manifest of the listed files."""
            files = [folder / name for name in (*read_sums(folder), SUMS)]
            return super().hash(model_path, files_to_hash=files_to_hash or files)

    cached = folder.parent.name == "snapshots"  # the Hub's cache has links to its blobs
    return Listed().set_ignored_paths(paths=_IGNORED).set_allow_symlinks(cached)


def _key_hint(key: Path) -> str:
    if not key.is_file():
        return f"There is no file {str(key)!r}."
    return (
        "The key must be one of an elliptic curve (P-256, P-384 or P-521) in PEM, such as "
        "`openssl ecparam -name prime256v1 -genkey -noout` makes. The password of an encrypted one "
        f"is taken from the environment, as {PASSWORD}."
    )
