"""Plot the relative norms of a model's task vectors, and write them as a table."""

from __future__ import annotations

import argparse

from shardmerge.algebra.expression import deltas
from shardmerge.base.files import write_text
from shardmerge.base.numerics import Numerics
from shardmerge.plan.description import load_description
from shardmerge.plan.files import load_spec
from shardmerge.plan.records import load_record
from shardmerge.report.frame import frame_of
from shardmerge.report.norms import measured, norm_cells, norm_table
from shardmerge.report.plots import draw_norms
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build's description")
    parser.add_argument("--records", nargs="*", default=[], help="of merge and delta jobs")
    parser.add_argument("--output", required=True, help="SVG file")
    parser.add_argument("--table", required=True, help="TSV file")
    args = parse_args(parser)
    claim(args.output, args.table)

    build = load_description(args.build)
    specs = {shard.file: load_spec(shard.digest) for shard in build.shards}
    norms = measured(specs, {path: load_record(path) for path in args.records})
    frame = frame_of(build.coefficients)
    if any(deltas(tensor.expression) for spec in specs.values() for tensor in spec.tensors):
        nothing = "The records of this model's jobs tell no norms of its task vectors."
    elif not Numerics(build.numerics).folds:
        nothing = f"Not measured: numerics {build.numerics} computes no task vectors apart."
    else:
        nothing = (
            "This model has no task vector: no difference of two sources is added to anything."
        )
    write_text(args.table, norm_table(norms, build.coefficients))
    cells = norm_cells(norms, frame)
    draw_norms(build.name, frame, cells, list(build.sources), args.output, nothing)


if __name__ == "__main__":
    run(main)
