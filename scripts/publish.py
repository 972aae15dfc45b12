"""Publish a verified model, an export or an adapter; resumed where a run was interrupted."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base import files
from shardmerge.base.errors import UserError
from shardmerge.package.publish import publish
from shardmerge.package.uploads import list_export, list_uploads
from shardmerge.plan.records import load_verified
from shardmerge.run import cli

_MESSAGES = {"model": "merged model", "adapter": "LoRA adapter", "export": "export of merged model"}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="what is published")
    parser.add_argument("--kind", choices=list(_MESSAGES), default="model", help="what it is")
    evidence = parser.add_mutually_exclusive_group(required=True)
    evidence.add_argument("--verify", type=Path, help="the model's verify record")
    evidence.add_argument("--loaded", type=Path, help="of an adapter: from load_adapter.py")
    parser.add_argument("--repo", required=True, help="repository, OWNER/NAME")
    parser.add_argument("--revision", help="branch (default: the main one)")
    parser.add_argument("--tag", help="name for the commit, once all is there")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--signature", type=Path, help="goes with it as model.sig")
    parser.add_argument("--public", action="store_true", help="for all to see")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--output", type=Path, required=True, help="receipt, JSON")
    args = parser.parse_args()
    cli.claim(args.output)
    _check_passed(args.verify, args.loaded)
    made = publish(
        args.folder,
        args.repo,
        private=not args.public,
        revision=args.revision,
        tag=args.tag,
        commit_message=args.message or f"Upload {_MESSAGES[args.kind]}",
        dry_run=args.dry_run,
        progress=cli.say,
        listing=list_uploads if args.kind == "model" else list_export,
        signature=args.signature,
    )
    print(made.url)
    if not args.dry_run:
        receipt = {
            "repository": args.repo,
            "kind": args.kind,
            "commit": made.commit,
            "url": made.url,
            "branch": args.revision,
            "tag": args.tag,
            "private": not args.public,
            "signed": args.signature is not None,
            "files": made.files,
        }
        files.write_json(args.output, receipt)


def _check_passed(verified: Path | None, loaded: Path | None) -> None:
    """Refuse what is not verified, or of an adapter what was not loaded on its base."""
    if verified:
        load_verified(verified)
    elif loaded and files.load_json(loaded).get("passed") is not True:
        raise UserError("does not say that the adapter was loaded", str(loaded))


if __name__ == "__main__":
    cli.run(main)
