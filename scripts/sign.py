"""Sign a finished model, adapter or export with OpenSSF's model-signing."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.package.signing import check_can_sign, sign
from shardmerge.run.cli import claim, run


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="with SHA256SUMS")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--key", type=Path, help="private key, PEM")
    who.add_argument("--sigstore", action="store_true", help="for your account, by sigstore")
    parser.add_argument("--output", type=Path, required=True, help="the signature, model.sig")
    args = parser.parse_args()
    check_can_sign()
    claim(args.output)
    sign(args.folder, args.output, args.key)
    print(f"{args.folder} is signed: {args.output}")


if __name__ == "__main__":
    run(main)
