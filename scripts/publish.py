"""Publish a verified model folder to the Hub; resumed where an earlier run was interrupted."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base import files
from shardmerge.package.publish import publish
from shardmerge.package.uploads import list_export, list_uploads
from shardmerge.plan.records import load_verified
from shardmerge.run import cli


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the model, or its export")
    parser.add_argument("--verify", type=Path, required=True, help="its verify record")
    parser.add_argument("--repo", required=True, help="repository, OWNER/NAME")
    parser.add_argument("--revision", help="branch (default: the main one)")
    parser.add_argument("--message", default="Upload merged model", help="of the commit")
    parser.add_argument("--export", action="store_true", help="the folder is an export")
    parser.add_argument("--public", action="store_true", help="for all to see")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--output", type=Path, required=True, help="receipt, JSON")
    args = parser.parse_args()
    cli.claim(args.output)
    load_verified(args.verify)  # what is not verified is not published
    listing = list_export if args.export else list_uploads
    url = publish(
        args.folder,
        args.repo,
        private=not args.public,
        revision=args.revision,
        commit_message=args.message,
        dry_run=args.dry_run,
        progress=cli.say,
        listing=listing,
    )
    print(url)
    if not args.dry_run:
        uploads, _ = listing(args.folder)
        receipt = {
            "repository": args.repo,
            "commit": url,
            "private": not args.public,
            "files": {upload.name: upload.size for upload in uploads},
        }
        files.write_json(args.output, receipt)


if __name__ == "__main__":
    cli.run(main)
