"""Check a file of LoRA factors against the updates that it was made from."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_json
from shardmerge.plan.adapter_description import load_factor_record, load_factor_spec
from shardmerge.run.cli import claim, run


def main() -> None:
    from shardmerge.check.factors import check_factors

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="digest of the specification")
    parser.add_argument("--update", required=True, type=Path, help="file of updates")
    parser.add_argument("--factors", required=True, type=Path)
    parser.add_argument("--record", required=True, type=Path, help="of the job that wrote them")
    parser.add_argument("--output", required=True, type=Path, help="where to write what was found")
    args = parser.parse_args()
    claim(args.output)

    spec, record = load_factor_spec(args.spec), load_factor_record(args.record)
    found = check_factors(spec, args.update, args.factors, record)
    write_json(args.output, found)
    print(
        f"{args.factors.name}: {found['modules']} modules miss their updates by what was recorded; "
        f"largest difference {found['largest_share_of_bounds']:.3f} of what is allowed"
    )


if __name__ == "__main__":
    run(main)
