"""Write one shard of a merged model, or of a task vector, from its specification."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from shardmerge.run.cli import claim, run, say
from shardmerge.run.worker import delegate, process_began


def main() -> None:
    # not before a job is known to run here
    from shardmerge.base.files import write_json
    from shardmerge.base.identities import Identities
    from shardmerge.engine import build_shard
    from shardmerge.engine.tasks import needs_torch
    from shardmerge.engine.watch import Watch
    from shardmerge.plan.files import IDENTITIES
    from shardmerge.plan.records import recorded_tensors
    from shardmerge.run.inputlists import parse_args
    from shardmerge.run.runs import is_made
    from shardmerge.run.shard_inputs import shard_inputs

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

    uses_torch = partial(needs_torch, device=args.device)
    job = shard_inputs(args.spec, args.sources, args.deltas, uses_torch=uses_torch)
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
        progress=_Progress(args.output.name),
        began=process_began(),
        sums={path: recorded_tensors(path) for path in read},
        watch=Watch(Identities(IDENTITIES)),
    )
    write_json(args.record, {"spec": args.spec, **record.to_json()})


class _Progress:
    """Prints a line every few seconds, and at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last < 5:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-9) / 1e6
        share = 100 * done // max(total, 1)
        say(
            f"{self._name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({share} %), "
            f"{rate:,.0f} MB/s"
        )


if __name__ == "__main__":
    delegate()
    run(main)
