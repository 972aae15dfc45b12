"""Write a model's config.json and the recipe that it was built from."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import read_text, write_text
    from shardmerge.package.config import output_config
    from shardmerge.plan.description import load_description
    from shardmerge.run.cli import claim

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--source", required=True, type=Path, help="config.json of the source")
    parser.add_argument("--output", required=True, type=Path, help="config.json to write")
    parser.add_argument("--recipe", required=True, type=Path, help="mergekit_config.yml to write")
    args = parser.parse_args()
    claim(args.output, args.recipe)

    description = load_description(args.build)
    config = read_text(args.source, exact=True)
    write_text(args.output, output_config(config, description, str(args.source)))
    write_text(args.recipe, description.recipe.text)


if __name__ == "__main__":
    start_job(main)
