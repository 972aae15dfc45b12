"""Write a pickle of model weights as a safetensors file, without running what is in it."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import load_json
from shardmerge.compose.architecture.names import is_head
from shardmerge.run.cli import claim, run, say
from shardmerge.sources.unpickle import convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pickle", required=True, type=Path, help="what torch.save wrote")
    parser.add_argument("--model", required=True, type=Path, help="folder with its config.json")
    parser.add_argument("--role", default="model", help="model, adapter or checkpoint")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    claim(args.output)
    config = args.model / "config.json"
    # models tie their embeddings unless their configuration says that they do not
    plain = args.role == "checkpoint"
    tied = not plain and config.is_file()
    tied = tied and load_json(config).get("tie_word_embeddings", True) is not False
    dropped = convert(args.pickle, args.output, tied=tied, is_head=is_head, nested=plain)
    for name, kept in dropped.items():
        say(f"{name} is {kept}, and the model ties them: left out")
    say(f"{args.output.name}: {args.output.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    run(main)
