"""A sweep's recipe as it is configured: one with gaps, or a document of mergekit-evolve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import parse_object, read_text
from shardmerge.recipe.nodes import Node, load_documents
from shardmerge.recipe.references import parse_reference
from shardmerge.sources.lock import read_lock
from shardmerge.sources.sources import Sources, lock_path
from shardmerge.sweep.genome import Genome, first_model, parse_genome
from shardmerge.sweep.searched import SEARCHES
from shardmerge.sweep.template import Template

#: Where fetched models and caches are not looked for: only a configuration is read.
_NOWHERE = Path(".shardmerge")
#: What tells a document of mergekit-evolve.
KEY = "genome"

Config = Mapping[str, Any]


def open_recipe(config: Config, folders: Mapping[str, str]) -> tuple[Template | Genome, Config]:
    """Return a sweep's recipe, and its configuration with the space that a genome gives.

    Args:
        config: The sweep, with defaults.
        folders: The configuration's ``sources``.

    Raises:
        UserError: If the file is neither, or the number of a genome's layers cannot be told.
    """
    path = config["recipe"]
    text = read_text(path)
    document = genome_in(text, path)
    if document is None:
        return Template(text, path), config
    genome = parse_genome(document, _layers(first_model(document), path, folders))
    found = dict(config) | {"space": genome.space() | dict(config["space"])}
    random = document.value.get("random_init")
    if config["sampler"] in SEARCHES and not (config["start"] or (random and random.value)):
        found["start"] = [genome.first()]
    return genome, found


def genome_in(text: str, path: str) -> Node | None:
    """Return the document of mergekit-evolve in a file, None if there is none.

    Raises:
        UserError: If it is no YAML.
    """
    if KEY not in text:
        return None
    # a recipe with gaps may be no YAML; then it is no such document
    return next(_genomes(text, path), None) if "${" not in text else None


def _genomes(text: str, path: str) -> Iterator[Node]:
    for node, _ in load_documents(text, path):
        if isinstance(node.value, dict) and KEY in node.value:
            yield node


def _layers(model: str, path: str, folders: Mapping[str, str]) -> int:
    """Return the number of a model's layers, of the lock or as the model is now."""
    place = lock_path(path)
    locked = read_lock(place).sources.get(model) if place.exists() else None
    if locked and locked.config:
        config: Mapping[str, Any] = locked.config
    else:
        store = Sources(folders, _NOWHERE, _NOWHERE, dry=True, keep=False).store(
            parse_reference(model)
        )
        config = parse_object(store.read_now("config.json"), f"config.json of {model}")
    layers = config.get("num_hidden_layers")
    if type(layers) is not int or layers < 1:
        raise UserError(f"config.json of {model} tells no number of layers", path)
    return layers
