"""Check a finished model: its files against the plan, and that transformers loads it."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.cli import claim, run
from shardmerge.files import write_json
from shardmerge.loading import load_model, load_tokenizer, stay_offline
from shardmerge.package import load_description, load_records
from shardmerge.verify import verify_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--model", required=True, type=Path, help="the model's folder")
    parser.add_argument("--checks", nargs="+", required=True, type=Path, help="from check_shard.py")
    parser.add_argument("--deltas", nargs="*", default=[], type=Path,
                        help="the same of stored task vectors")  # fmt: skip
    parser.add_argument("--records", nargs="+", required=True, type=Path, help="from merge.py")
    parser.add_argument("--output", required=True, type=Path, help="where to write what was found")
    parser.add_argument("--load", action=argparse.BooleanOptionalAction, default=True,
                        help="whether transformers must load it")  # fmt: skip
    parser.add_argument("--load-limit-gb", type=float, default=8.0, metavar="GB",
                        help="of larger models only the architecture is loaded")  # fmt: skip
    args = parser.parse_args()
    claim(args.output)

    args.output.unlink(missing_ok=True)  # an earlier pass must not outlive a failure
    description = load_description(args.build)
    found = verify_model(
        args.build, description, args.model, args.checks, args.records, args.deltas
    )
    if args.load:
        stay_offline()
        allowed = any(record.get("nonfinite") for record in load_records(args.records).values())
        weights = found["bytes"] <= args.load_limit_gb * 1e9
        found |= load_tokenizer(args.model, description["tokens"])
        found |= load_model(args.model, weights=weights, allow_nonfinite=allowed)
    write_json(args.output, found)
    print(
        f"{description['name']}: {found['tensors']:,} tensors in {found['shards']} shards are as "
        f"planned, {found['elements']:,} elements recomputed"
        + (f", loaded as {found['architecture']}" if args.load else ", not loaded")
    )


if __name__ == "__main__":
    run(main)
