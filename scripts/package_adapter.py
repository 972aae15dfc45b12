"""Write the folder of a LoRA adapter: weights, configuration, card, provenance, checksums."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import sha256_of, write_json, write_text
from shardmerge.base.hashing import sums_text
from shardmerge.package.adapter import (
    adapter_config,
    base_name,
    config_text,
    join_factors,
)
from shardmerge.package.adapter_card import adapter_card, adapter_provenance
from shardmerge.package.card import parse_card_settings
from shardmerge.plan.adapter_description import load_adapter, load_made_modules
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True, help="digest of the adapter's description")
    parser.add_argument("--factors", nargs="+", required=True, type=Path)
    parser.add_argument("--records", nargs="+", required=True, type=Path, help="of their jobs")
    parser.add_argument("--card", default="{}", help="JSON: the configuration's `card`")
    parser.add_argument("--base", help="repository of the base, if this run publishes it")
    parser.add_argument("--repository", help="of the adapter, if it is published")
    parser.add_argument("--weights", required=True, type=Path, help="adapter_model.safetensors")
    parser.add_argument("--config", required=True, type=Path, help="adapter_config.json")
    parser.add_argument("--recipe", required=True, type=Path)
    parser.add_argument("--readme", required=True, type=Path)
    parser.add_argument("--provenance", required=True, type=Path)
    parser.add_argument("--checksums", required=True, type=Path)
    args = parse_args(parser)
    files = [args.weights, args.config, args.recipe, args.readme]
    claim(*files, args.provenance, args.checksums)

    description = load_adapter(args.adapter)
    made = load_made_modules(description, args.records)
    base = args.base or base_name(description)
    config = adapter_config(description, made, base)
    sums = {args.weights.name: join_factors(args.factors, args.weights)}
    write_text(args.config, config_text(config))
    write_text(args.recipe, description.recipe.text)
    settings = parse_card_settings(args.card)
    card = adapter_card(description, made, settings, args.base or None, args.repository or None)
    write_text(args.readme, card)
    for path in files:
        sums.setdefault(path.name, sha256_of(path))
    outputs = {p.name: {"sha256": sums[p.name], "size": p.stat().st_size} for p in files}
    write_json(args.provenance, adapter_provenance(args.adapter, description, made, outputs, base))
    sums[args.provenance.name] = sha256_of(args.provenance)
    write_text(args.checksums, sums_text(sums))


if __name__ == "__main__":
    run(main)
