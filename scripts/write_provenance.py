"""Write what a model was made from and with."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import write_json
    from shardmerge.package.index import load_records
    from shardmerge.package.provenance import make_provenance
    from shardmerge.plan.description import load_description
    from shardmerge.plan.records import load_verified
    from shardmerge.run.cli import claim
    from shardmerge.run.inputlists import parse_args

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--records", nargs="+", required=True, type=Path, help="of the shards")
    parser.add_argument("--verify", required=True, type=Path, help="what verify_model.py wrote")
    parser.add_argument("--files", nargs="*", default=[], type=Path, help="all other files")
    parser.add_argument("--output", required=True, type=Path, help="in the model's folder")
    args = parse_args(parser)
    claim(args.output)

    write_json(
        args.output,
        make_provenance(
            args.build,
            load_description(args.build),
            load_records(args.records),
            load_verified(args.verify),
            args.output.parent,
            args.files,
        ),
    )


if __name__ == "__main__":
    start_job(main)
