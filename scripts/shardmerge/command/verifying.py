"""The command `verify`: a finished folder against what it says of itself, and who signed it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.text import human_bytes, plural
from shardmerge.package.finished import SUMS, Finished, check_finished, finished_folders
from shardmerge.package.signature import read_signature
from shardmerge.package.signing import Signer, check_signature
from shardmerge.plan.paths import SIGNATURE
from shardmerge.run.cli import say, show


def signer_of(
    key: str | None = None, identity: str | None = None, issuer: str | None = None
) -> Signer | None:
    """Return who must have signed, None if it is not asked.

    Args:
        key: File of a public key.
        identity: Account of sigstore.
        issuer: Who says that the account is who it is.

    Raises:
        UserError: If they do not go together.
    """
    if key and (identity or issuer):
        raise UserError("a key and an account are asked for", hint="Leave one of them out.")
    if bool(identity) is not bool(issuer):
        raise UserError("`--identity` and `--issuer` go together")
    if key and not Path(key).is_file():
        raise UserError("is no file of a public key", key)
    return Signer(Path(key) if key else None, identity, issuer) if key or identity else None


def verify(given: str, signer: Signer | None = None) -> None:
    """Check a model, an adapter, an export, or all of these of a result, and print what was found.

    Args:
        given: The folder that has the checksums, or the folder of results above it.
        signer: Who must have signed each, None if a signature is only told of.

    Raises:
        UserError: If a file is not as it was written or signed, or the folder has no checksums.
    """
    for folder in finished_folders(Path(given)):
        _verify(folder, signer)


def _verify(folder: Path, signer: Signer | None) -> None:
    found = check_finished(folder, say)
    if found.wrong:
        rest = f" and {len(found.wrong) - 1} more" if len(found.wrong) > 1 else ""
        raise UserError(
            f"is not as it was written: {found.wrong[0]}{rest}",
            str(folder),
            "Copy or download it again.",
        )
    lines = [*_told(folder, found), _signature(folder, signer)]
    show(f"{folder}:\n" + "".join(f"  {line}\n" for line in lines))


def _told(folder: Path, found: Finished) -> Iterator[str]:
    size = human_bytes(found.size)
    yield f"checksums: {plural(len(found.files), 'file')}, {size}, each as {SUMS} says"
    if found.made is None:
        yield "provenance: none; nothing tells what it was made from"
    else:
        yield f"provenance: {found.made}; it lists the same files"
    for name in found.others:
        yield f"not part of it, and not checked: {name}"


def _signature(folder: Path, signer: Signer | None) -> str:
    path = folder / SIGNATURE
    if not path.exists() and not path.is_symlink():
        if signer is not None:
            raise UserError(f"is not signed: it has no {SIGNATURE}", str(folder))
        return "signature: none; whoever could write the files could write all of them"
    if signer is None:
        told = read_signature(path)
        how = "`--key PUBLIC.pem`" if told.by_key else "`--identity` and `--issuer`"
        return f"signature: of {plural(len(told.files), 'file')}, not checked; give {how}"
    count = check_signature(folder, signer)
    return f"signature: {plural(count, 'file')} signed by {signer}"
