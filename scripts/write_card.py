"""Write a model's card; the benchmarks that its last one had stay while they are the model's."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import write_text
    from shardmerge.benchmark import scores
    from shardmerge.package.card import make_card, parse_card_settings
    from shardmerge.package.card_picture import remove_picture, shows_picture
    from shardmerge.package.card_scores import added_results
    from shardmerge.plan.description import load_description
    from shardmerge.run.cli import claim
    from shardmerge.run.inputlists import parse_args

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--card", default="{}", help="the configuration's `card`, as JSON")
    parser.add_argument("--receipt", type=Path, help="what add_scores.py left, if it ran")
    parser.add_argument("--output", required=True, type=Path, help="README.md to write")
    args = parse_args(parser)
    claim(args.output)

    results = added_results(args.receipt, args.build) if args.receipt else []
    table = scores.score_table(scores.load(results)) if results else None
    settings, description = parse_card_settings(args.card), load_description(args.build)
    write_text(args.output, make_card(description, settings, table))
    if not shows_picture(description, settings):
        remove_picture(args.output.parent)


if __name__ == "__main__":
    start_job(main)
