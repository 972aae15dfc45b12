"""Weights in a model's folder that are not of the model: our own earlier ones go, others stay.

Another `max_shard_size` makes shards of other names. The earlier ones stay until the new ones are
whole, so that a run that is stopped before can go back to them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shardmerge.base import claims
from shardmerge.base.errors import UserError
from shardmerge.package.index import index_text, make_index
from shardmerge.plan.description import BuildDescription, load_description
from shardmerge.plan.files import description_path
from shardmerge.plan.paths import check_record_path, record_path
from shardmerge.plan.records import is_as_recorded


def stray_weights(description: BuildDescription, folder: Path) -> list[Path]:
    """Return what lies in a model's folder that a loader may take for its weights.

    Args:
        description: The build's.
        folder: The model's.
    """
    known = {shard.file for shard in description.shards}
    known |= set(description.indexes)
    return [
        path
        for path in sorted(folder.rglob("*.safetensors*"))
        if path.relative_to(folder).as_posix() not in known and not path.name.startswith(".")
    ]


def remove_superseded(
    description: BuildDescription, folder: Path, say: Callable[[str], None]
) -> None:
    """Remove shards of an earlier plan, and its index, from the folder of a model that is whole.

    Only what is byte for byte what this workflow wrote there goes: a shard that has the hash in its
    job's record, an index that follows from an earlier plan of the model.

    Args:
        description: The build's.
        folder: The model's; the records are in ``records`` beside it.
        say: Takes a line for each file.

    Raises:
        UserError: If another process is writing such a file.
    """
    for path in stray_weights(description, folder):
        if path.name.endswith(".json"):
            index = path.relative_to(folder).as_posix()
            is_ours, about = _is_earlier_index(path, index, description.name), []
        else:
            about = [Path(record_path(path)), Path(check_record_path(path))]
            is_ours = is_as_recorded(path, about[0])
        if is_ours:
            with claims.claimed(path, wait=False):
                path.unlink()
            for record in about:  # the shard first: without its record it would be anybody's
                record.unlink(missing_ok=True)
            say(f"removed {path.name}, which an earlier plan of this model had")


def _is_earlier_index(path: Path, index: str, name: str) -> bool:
    """Return whether an index is that of a plan that is still known here."""
    content = path.read_bytes()
    for earlier in sorted(description_path(name).parent.glob("*.json")):
        try:
            description = load_description(earlier.stem)
        except UserError:  # damaged, so that it tells nothing
            continue
        own = index_text(make_index(description, index))
        if description.name == name and own.encode() == content:
            return True
    return False
