"""List what `publish` would upload, file by file, and write nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.text import human_bytes, plural
from shardmerge.package.publish import publish
from shardmerge.package.uploads import list_export, list_uploads
from shardmerge.run import cli
from shardmerge.run.inputlists import parse_args


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", nargs="+", action="extend", required=True, type=Path)
    parser.add_argument("--kind", nargs="+", action="extend", required=True, help="of each folder")
    parser.add_argument("--repo", nargs="+", action="extend", required=True, help="of each folder")
    parser.add_argument(
        "--signature", nargs="*", action="extend", default=[], help="of each folder"
    )
    parser.add_argument("--public", action="store_true", help="for all to see")
    args = parse_args(parser)
    signatures = [Path(path) for path in args.signature] or [None] * len(args.folder)
    total = count = 0
    lines: list[str] = []
    for folder, kind, repo, signature in zip(
        args.folder, args.kind, args.repo, signatures, strict=True
    ):
        try:
            made = publish(
                folder,
                repo,
                private=not args.public,
                dry_run=True,
                progress=lines.append,
                listing=list_uploads if kind == "model" else list_export,
                signature=signature,
            )
        except UserError as error:
            raise UserError(f"could not be listed: {error}", str(folder)) from None
        total += sum(int(file["size"]) for file in made.files.values())
        count += len(made.files)
    what = f"{plural(count, 'file')}, {human_bytes(total)}, of {plural(len(args.folder), 'folder')}"
    lines.append(f"{what}; nothing is uploaded")
    cli.show("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    cli.run(main)
