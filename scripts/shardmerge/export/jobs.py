"""What the jobs of a compressed export are told: the model, the scheme, what of it is quantised."""

from __future__ import annotations

import argparse

from shardmerge.base.files import parse_object
from shardmerge.export.schemes import ExportScheme, scheme_of
from shardmerge.export.selection import Selection, model_tensors, select, with_options
from shardmerge.plan.description import load_description


def add_scheme_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``parsed_options`` reads."""
    parser.add_argument("--build", required=True, help="digest of the build")
    parser.add_argument("--scheme", required=True, help="such as fp8-dynamic")
    parser.add_argument("--options", required=True, help="what counts of the configuration, JSON")


def parsed_options(args: argparse.Namespace) -> tuple[ExportScheme, Selection]:
    """Return the scheme with its groups, and which weights of the model are quantised."""
    options = parse_object(args.options, "--options")
    scheme = with_options(scheme_of(args.scheme), options)
    tensors = model_tensors(load_description(args.build))
    return scheme, select(tensors, scheme, options["ignore"])
