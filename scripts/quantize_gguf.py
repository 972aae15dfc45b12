"""Make the GGUF files of one type, with llama.cpp; split where they are too large for one."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.text import parse_size
from shardmerge.export.gguf_making import plain_type, quantize
from shardmerge.export.tools import LlamaCpp
from shardmerge.plan.description import load_description
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--base", required=True, type=Path, help="from convert_gguf.py")
    parser.add_argument("--type", required=True, help="of llama.cpp, such as q4_k_m")
    parser.add_argument("--stem", required=True, help="of the files' names")
    parser.add_argument("--imatrix", type=Path, help="from measure_importance.py")
    parser.add_argument("--split-size", required=True, help="of the largest file")
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="FOLDER", help="of llama.cpp, if not PATH"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--output", required=True, type=Path, help="folder of the files")
    args = parser.parse_args()
    claim(args.output)

    quantize(
        LlamaCpp(args.llama_cpp),
        args.base,
        args.type,
        args.stem,
        parse_size(args.split_size) or 0,
        args.output,
        plain=plain_type(load_description(args.build)),
        imatrix=args.imatrix,
        threads=args.threads,
    )


if __name__ == "__main__":
    run(main)
