"""Hash a large file of a local model whole, and compare it with what is known of it."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import write_json
    from shardmerge.base.identities import Identities
    from shardmerge.package.known import hash_source
    from shardmerge.plan.files import IDENTITIES
    from shardmerge.run.cli import claim

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, type=Path, help="the file")
    parser.add_argument("--identity", required=True, help="what the lock knows it by")
    parser.add_argument("--output", required=True, type=Path, help="where to write what was found")
    args = parser.parse_args()
    claim(args.output)

    found = hash_source(args.source, args.identity, Identities(IDENTITIES))
    write_json(args.output, found)
    print(f"{args.source}: {found['size'] / 1e6:,.0f} MB, SHA-256 {found['sha256']}")


if __name__ == "__main__":
    start_job(main)
