"""Check a written shard against the sources that it was made from."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.errors import UserError
    from shardmerge.base.files import write_json
    from shardmerge.base.identities import Identities
    from shardmerge.base.malloc import keep_freed_memory
    from shardmerge.check.memory import check_needs_torch
    from shardmerge.check.shard import check_shard
    from shardmerge.engine.tasks import one_task_of_each
    from shardmerge.engine.watch import Watch
    from shardmerge.plan.files import IDENTITIES
    from shardmerge.plan.records import load_record
    from shardmerge.run.cli import claim
    from shardmerge.run.inputlists import parse_args
    from shardmerge.run.shard_inputs import shard_inputs

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="digest of the specification")
    parser.add_argument("--shard", required=True, type=Path)
    parser.add_argument("--record", required=True, type=Path, help="of the job that wrote it")
    parser.add_argument("--sources", nargs="*", default=[], type=Path, help="files, in its order")
    parser.add_argument("--deltas", nargs="*", default=[], type=Path, help="stored task vectors")
    parser.add_argument("--output", required=True, type=Path, help="where to write what was found")
    args = parse_args(parser)
    asks = {"uses_torch": check_needs_torch, "make": one_task_of_each}
    job = shard_inputs(args.spec, args.sources, args.deltas, **asks)
    claim(args.output)
    keep_freed_memory()

    recorded = load_record(args.record)
    if recorded.spec not in (None, args.spec):
        raise UserError(
            "is of a shard that was made for another plan",
            str(args.record),
            f"Delete {str(args.shard)!r} and run the workflow again, which makes both anew.",
        )
    watch = Watch(Identities(IDENTITIES))
    found = check_shard(job.spec, args.shard, job.sources, job.deltas, recorded, watch)
    write_json(args.output, found)
    print(
        f"{args.shard.name}: all bytes are as they were written; {found['elements']:,} elements of "
        f"{found['tensors']} tensors are right; largest error "
        f"{found['largest_error_in_bounds']:.3f} of what rounding allows"
    )
    for name in found["not_sampled"]:
        print(f"{name}: not recomputed: its merge method needs the whole of a large tensor, and")
        print("nothing of it was recorded; or a library decides which singular values count")


if __name__ == "__main__":
    start_job(main)
