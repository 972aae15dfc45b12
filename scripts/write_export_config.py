"""Write the config.json of a quantised export: the model's, and how weights are quantised."""

from __future__ import annotations

from shardmerge.run.worker import COMPRESSED, start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import read_text, write_text
    from shardmerge.export.compressed_check import QUANTIZATION
    from shardmerge.export.compressed_library import quantization_config
    from shardmerge.export.jobs import add_scheme_arguments, parsed_options
    from shardmerge.package.config import set_dtype, set_values
    from shardmerge.run.cli import claim

    parser = argparse.ArgumentParser(description=__doc__)
    add_scheme_arguments(parser)
    parser.add_argument("--source", required=True, type=Path, help="the model's config.json")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    claim(args.output)

    scheme, selection = parsed_options(args)
    told, where = {QUANTIZATION: quantization_config(scheme, selection)}, str(args.source)
    text = set_dtype(read_text(args.source, exact=True), scheme.runs, where)
    write_text(args.output, set_values(text, told, where))


if __name__ == "__main__":
    start_job(main, COMPRESSED)
