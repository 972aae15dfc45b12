"""Write a file of LoRA factors from a file of updates."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_json
from shardmerge.base.forms import written
from shardmerge.plan.adapter_description import load_factor_spec
from shardmerge.run.cli import claim, run


def main() -> None:
    from shardmerge.engine.factors import build_factors

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="digest of the specification")
    parser.add_argument("--update", required=True, type=Path, help="file of updates")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--record", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    claim(args.output, args.record)

    spec = load_factor_spec(args.spec)
    record = build_factors(spec, args.update, args.output, threads=args.threads, device=args.device)
    write_json(args.record, written(record))
    print(f"{args.output.name}: {len(record.modules)} modules")


if __name__ == "__main__":
    run(main)
