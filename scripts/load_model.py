"""Load a finished model with transformers and let it generate."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import write_json
from shardmerge.check.load import load_model, load_tokenizer, stay_offline
from shardmerge.package.index import load_records
from shardmerge.plan.description import load_description
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--model", required=True, type=Path, help="the model's folder")
    parser.add_argument("--records", nargs="+", required=True, type=Path, help="from merge.py")
    parser.add_argument("--output", required=True, type=Path, help="where to write what was found")
    parser.add_argument("--limit-gb", type=float, default=8.0, metavar="GB",
                        help="of larger models only the architecture is loaded")  # fmt: skip
    args = parse_args(parser)
    claim(args.output)

    args.output.unlink(missing_ok=True)  # an earlier pass must not outlive a failure
    tokens = load_description(args.build).tokens
    records = load_records(args.records).values()
    stay_offline()
    written = (tokens.vocabulary, tokens.tokens) if tokens.added is not None else ()
    found = load_tokenizer(args.model, *written) | load_model(
        args.model,
        weights=sum(record.size for record in records) <= args.limit_gb * 1e9,
        allow_nonfinite=any(record.nonfinite for record in records),
    )
    write_json(args.output, {"passed": True, **found})
    print(f"loaded as {found['architecture']}, {found['loaded']}")
    if found.get("text") is not None:
        print(f'after "{found["prompt"]}" it goes on: "{found["text"]}"')


if __name__ == "__main__":
    run(main)
