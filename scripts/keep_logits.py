"""Write what a model says of a text, so that other models can be compared with it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from shardmerge.benchmark import harness, loading
from shardmerge.benchmark.options import parse_options
from shardmerge.benchmark.probe_options import parse_probes
from shardmerge.benchmark.probe_text import load_text, tokenized
from shardmerge.benchmark.reference_logits import keep_logits
from shardmerge.run.cli import claim, run


def main() -> None:
    """Read the command line, load the model, write its logits."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="FOLDER", help="a transformers model")
    add("--name", required=True, help="what the model is called in results")
    add("--options", default="{}", metavar="JSON", help="as below `benchmark`")
    add("--probes", required=True, metavar="JSON", help="as below `benchmark.probes`")
    add("--threads", type=int, default=1, help="CPU threads (default 1)")
    add("--output", type=Path, required=True, help="safetensors file")
    args = parser.parse_args()
    options, probes = parse_options(args.options, {}), parse_probes(args.probes)
    text = load_text(probes.text, probes.characters)
    harness.prepare(args.threads)
    claim(args.output)
    with tempfile.TemporaryDirectory(dir=args.output.parent) as folder:
        model = loading.language_model(args.model, options, Path(folder))
        keep_logits(model, args.name, tokenized(model.tokenizer, text), probes, args.output)


if __name__ == "__main__":
    run(main)
