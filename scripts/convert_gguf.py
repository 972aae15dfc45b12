"""Convert a verified model to one GGUF file in its own type, with llama.cpp's converter."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.export.gguf_making import convert_model, plain_type
from shardmerge.export.tools import LlamaCpp
from shardmerge.plan.description import load_description
from shardmerge.plan.records import load_verified
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--model", required=True, type=Path, help="the model's folder")
    parser.add_argument("--verify", required=True, type=Path, help="what verify_model.py wrote")
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="FOLDER", help="of llama.cpp, if not PATH"
    )
    parser.add_argument("--output", required=True, type=Path, help="the file")
    args = parser.parse_args()
    claim(args.output)

    load_verified(args.verify)  # what is not verified is not exported
    description = load_description(args.build)
    tools = LlamaCpp(args.llama_cpp)
    convert_model(tools, args.model, description.name, plain_type(description), args.output)


if __name__ == "__main__":
    run(main)
