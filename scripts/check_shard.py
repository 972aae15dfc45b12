"""Check a written shard against the sources that it was made from."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.cli import claim, run
from shardmerge.worker import TORCH, delegate


def main() -> None:
    # not before a job is known to run here
    from shardmerge.engine.steps import needs_torch
    from shardmerge.errors import UserError
    from shardmerge.files import write_json
    from shardmerge.inputlists import parse_args
    from shardmerge.planfiles import load_spec
    from shardmerge.shardcheck import check_shard
    from shardmerge.stored import stored_deltas

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="digest of the specification")
    parser.add_argument("--shard", required=True, type=Path)
    parser.add_argument("--sources", nargs="*", default=[], type=Path, help="files, in its order")
    parser.add_argument("--deltas", nargs="*", default=[], type=Path, help="stored task vectors")
    parser.add_argument("--output", required=True, type=Path, help="where to write what was found")
    args = parse_args(parser)
    spec = load_spec(args.spec)
    stored = stored_deltas(spec, args.deltas)
    if needs_torch(spec, stored):
        delegate(TORCH)
    claim(args.output)

    files = spec.required_files(stored)
    if len(files) != len(args.sources):
        raise UserError(f"needs {len(files)} files, {len(args.sources)} are given", "--sources")
    sources = dict(zip(files, args.sources, strict=True))
    record = check_shard(spec, args.shard, sources, args.deltas)
    write_json(args.output, record)
    print(
        f"{args.shard.name}: {record['elements']:,} elements of {record['tensors']} tensors are "
        f"right; largest error {record['largest_error']:.3f} of what rounding allows"
    )
    for name in record["not_sampled"]:
        print(f"{name}: not recomputed, its merge method needs the whole of a large tensor")


if __name__ == "__main__":
    delegate()
    run(main)
