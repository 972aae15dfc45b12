"""The file of a signature (a sigstore bundle, as OpenSSF's model-signing writes it): what it is of.

Nothing here computes with keys: ``signing`` does. What is read may be a stranger's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.digest import is_digest
from shardmerge.base.errors import UserError, shortened
from shardmerge.base.filenames import safe_name
from shardmerge.base.files import parse_object, read_bytes
from shardmerge.plan.paths import CHECKSUMS, SIGNATURE

#: Bytes that it may have; a row of a file takes some hundred.
_MOST = 64 << 20
_NONE = "is no signature of a model"


@dataclass(frozen=True)
class Signature:
    """What a signature says, whoever made it.

    Args:
        files: SHA-256 by name.
        by_key: Whether it was made with a key of its own, and not by sigstore for an account.
    """

    files: Mapping[str, str]
    by_key: bool


def read_signature(path: Path) -> Signature:
    """Return what a signature says; whether that is true, only its key shows.

    Raises:
        UserError: If it is none, is a link, or names files that no model has.
    """
    where = str(path)
    if path.is_symlink() or not path.is_file():
        raise UserError("is no file of a signature", where)
    bundle = parse_object(read_bytes(path, _MOST), where)
    try:
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True)
        material = bundle["verificationMaterial"]
        statement = parse_object(payload, where)
        rows = statement["predicate"]["resources"]
        found: dict[str, str] = {}
        for row in rows:
            name, sha256 = row["name"], row["digest"]
            if row["algorithm"] != "sha256" or not is_digest(sha256):
                raise UserError(f"{_NONE}: it has no SHA-256 of {shortened(name)}", where)
            if safe_name(name, None, where) in found:
                raise UserError(f"{_NONE}: it names {shortened(name)} twice", where)
            found[name] = sha256
        return Signature(found, "publicKey" in material)
    except (KeyError, TypeError, binascii.Error, ValueError):
        raise UserError(_NONE, where) from None


def check_signed(path: Path, digests: Mapping[str, str]) -> None:
    """Make sure that a signature is of files as they are.

    Args:
        path: The signature.
        digests: SHA-256 of the files by name; that of the signature itself does not count.

    Raises:
        UserError: If it is of others.
    """
    signed = read_signature(path).files
    wanted = {name: sha256 for name, sha256 in digests.items() if name != SIGNATURE}
    if wrong := sorted(n for n in {*signed, *wanted} if signed.get(n) != wanted.get(n)):
        raise UserError(
            f"is not of {shortened(wrong[0])} as it is now; nothing is published",
            str(path),
            f"Delete it and run the workflow again, which signs anew what {CHECKSUMS} lists.",
        )
