"""What a job told of the shard that it wrote, as much of it as a test gives to a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Told:
    """A ``check.shard.ToldShard``."""

    sha256: str | None = None
    xxh3: str | None = None
    passes: Mapping[str, Any] = field(default_factory=dict)
    probes: Mapping[str, Any] = field(default_factory=dict)
