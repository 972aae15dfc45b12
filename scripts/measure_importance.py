"""Measure on a text which weights matter, with llama.cpp."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.export.gguf_making import measure_importance
from shardmerge.export.tools import LlamaCpp
from shardmerge.run.cli import claim, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, type=Path, help="from convert_gguf.py")
    parser.add_argument("--text", required=True, type=Path, help="that the model reads")
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="FOLDER", help="of llama.cpp, if not PATH"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--output", required=True, type=Path, help="the importance matrix")
    args = parser.parse_args()
    claim(args.output)

    tools = LlamaCpp(args.llama_cpp)
    measure_importance(tools, args.base, args.text, args.threads, args.output)


if __name__ == "__main__":
    run(main)
