"""Compare GGUF files with the model that they were made from: metadata, tensors, values."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base import forms
from shardmerge.base.files import write_json
from shardmerge.export.gguf_check import check_gguf
from shardmerge.export.tools import LlamaCpp
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--model", required=True, type=Path, help="the model's folder")
    parser.add_argument("--folder", required=True, type=Path, help="from quantize_gguf.py")
    parser.add_argument("--type", required=True, help="of the files")
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="FOLDER", help="of llama.cpp, if not PATH"
    )
    parser.add_argument("--output", required=True, type=Path, help="what was found, JSON")
    args = parser.parse_args()
    claim(args.output)

    args.output.unlink(missing_ok=True)  # an earlier pass must not outlive a failure
    tools = LlamaCpp(args.llama_cpp)
    record = check_gguf(args.folder, args.type, args.model, args.build, tools)
    write_json(args.output, forms.written(record))
    compared, others = record.errors.compared, len(record.errors.not_compared)
    print(f"{compared} tensors compared, {others} not; median error {record.errors.median:.2g}")


if __name__ == "__main__":
    run(main)
