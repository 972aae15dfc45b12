"""Check a finished model: its files against the plan and against what its jobs recorded."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base import forms
    from shardmerge.base.files import write_json
    from shardmerge.package.verify import verify_model
    from shardmerge.plan.description import load_description
    from shardmerge.run.cli import claim, say
    from shardmerge.run.inputlists import parse_args

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--model", required=True, type=Path, help="the model's folder")
    parser.add_argument("--checks", nargs="+", required=True, type=Path, help="from check_shard.py")
    parser.add_argument("--deltas", nargs="*", default=[], type=Path,
                        help="the same of stored task vectors")  # fmt: skip
    parser.add_argument("--hashes", nargs="*", default=[], type=Path,
                        help="from hash_source.py")  # fmt: skip
    parser.add_argument("--records", nargs="+", required=True, type=Path, help="from merge.py")
    parser.add_argument("--output", required=True, type=Path, help="where to write what was found")
    args = parse_args(parser)
    claim(args.output)

    args.output.unlink(missing_ok=True)  # an earlier pass must not outlive a failure
    found = verify_model(
        args.build,
        load_description(args.build),
        args.model,
        args.checks,
        args.records,
        args.deltas,
        args.hashes,
        say,
    )
    write_json(args.output, forms.written(found))
    print(
        f"{found.name}: {found.tensors:,} tensors in {found.shards} shards are as "
        f"planned, all bytes are as they were written, {found.elements:,} elements recomputed; "
        f"of the source files {found.sources['hashed']} are known by all their bytes, "
        f"{found.sources['sampled']} by a sample"
    )


if __name__ == "__main__":
    start_job(main)
