"""Write the card, the provenance and the checksums of an export."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmerge.base.files import parse_object, sha256_of, write_json, write_text
from shardmerge.base.hashing import sums_text
from shardmerge.export import package
from shardmerge.export.record import load_export
from shardmerge.export.registry import form_of
from shardmerge.plan.description import load_description
from shardmerge.plan.paths import CHECKSUMS
from shardmerge.run.cli import claim, run
from shardmerge.run.inputlists import parse_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--form", required=True, help="such as gguf")
    parser.add_argument("--card", default="{}", help="the configuration's `card`, as JSON")
    parser.add_argument("--repository", help="of the export, if it is published")
    parser.add_argument("--model-repository", help="of the model, likewise")
    parser.add_argument("--provenance", required=True, type=Path, help="the model's")
    parser.add_argument("--records", nargs="+", required=True, type=Path, help="of the checks")
    parser.add_argument("--output", required=True, type=Path, help="the export's folder")
    args = parse_args(parser)
    card, provenance, sums = (args.output / n for n in ("README.md", "provenance.json", CHECKSUMS))
    claim(card, provenance, sums)

    form, name = form_of(args.form), load_description(args.build).name
    records = [load_export(path) for path in args.records]
    package.check_same_model(records, args.build)
    settings = parse_object(args.card, "--card")
    model, own = args.model_repository or None, args.repository or None
    write_text(card, package.export_card(form, name, settings, records, model, own))
    told = package.export_provenance(form, name, records, sha256_of(args.provenance))
    write_json(provenance, told)
    files = package.export_files(form, records)
    files |= {path.name: sha256_of(path) for path in (card, provenance)}
    write_text(sums, sums_text(files))


if __name__ == "__main__":
    run(main)
