"""Write one shard of a merged model, or of a task vector, from its specification."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import write_json
    from shardmerge.base.identities import Identities
    from shardmerge.base.malloc import keep_freed_memory
    from shardmerge.engine import build_shard
    from shardmerge.engine.watch import Watch
    from shardmerge.plan.files import IDENTITIES
    from shardmerge.plan.records import recorded_tensors
    from shardmerge.run.cli import claim, say
    from shardmerge.run.inputlists import parse_args
    from shardmerge.run.progress import ShardProgress
    from shardmerge.run.runs import is_made
    from shardmerge.run.shard_inputs import shard_inputs
    from shardmerge.run.worker import process_began

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="digest of the specification")
    parser.add_argument("--sources", nargs="*", default=[], type=Path, help="files, in its order")
    parser.add_argument("--deltas", nargs="*", default=[], type=Path, help="stored task vectors")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--record", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--link", default="clone", choices=("clone", "copy", "hard"))
    args = parse_args(parser)

    job = shard_inputs(args.spec, args.sources, args.deltas)
    keep_freed_memory()
    waited = claim(args.output, args.record)
    if waited and is_made(args.output, args.record, args.spec):
        say(f"{args.output.name}: another job has made it; nothing is left to do")
        return
    read = {one.path: None for one in job.stored.values()}
    record = build_shard(
        job.spec,
        job.sources,
        args.output,
        deltas=job.deltas,
        threads=args.threads,
        device=args.device,
        link=args.link,
        progress=ShardProgress(args.output.name),
        began=process_began(),
        sums={path: recorded_tensors(path) for path in read},
        watch=Watch(Identities(IDENTITIES)),
        tasks=job.tasks,
    )
    write_json(args.record, {"spec": args.spec, **record.to_json()})


if __name__ == "__main__":
    start_job(main)
