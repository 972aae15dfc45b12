"""Write a file of a merged model's tokenizer from its sources' files."""

from __future__ import annotations

from shardmerge.run.worker import start_job


def main() -> None:
    # not before a job is known to run here
    import argparse
    from pathlib import Path

    from shardmerge.base.files import read_text, write_text
    from shardmerge.package.tokenizer import tokenizer_text
    from shardmerge.plan.description import load_description
    from shardmerge.run.cli import claim
    from shardmerge.run.inputlists import parse_args

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument(
        "--sources", nargs="+", required=True, type=Path, help="files, in its order"
    )
    parser.add_argument("--output", required=True, type=Path, help="file to write")
    args = parse_args(parser)
    claim(args.output)

    tokens = load_description(args.build).tokens
    texts = {
        (model, file): read_text(path, exact=True)
        for (model, file, _), path in zip(tokens.read, args.sources, strict=True)
    }
    text = tokenizer_text(args.output.name, tokens, texts)
    write_text(args.output, text)


if __name__ == "__main__":
    start_job(main)
