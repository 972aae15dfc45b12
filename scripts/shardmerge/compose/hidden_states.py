"""What a model makes of prompts: a small source that a job writes, for routers of mixtures."""

from __future__ import annotations

from dataclasses import dataclass

#: Changes when the job that makes hidden states makes others of the same prompts.
HIDDEN_VERSION = 1


@dataclass(frozen=True)
class HiddenStates:
    """What a job makes of prompts that a model reads: a direction for each expert and layer.

    Args:
        model: The source that reads them.
        mode: The document's ``gate_mode``.
        prompts: For each expert its positive and its negative prompts.
        digest: Of these and of the model's files: what the job's result is known by.
    """

    model: str
    mode: str
    prompts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    digest: str

    @property
    def key(self) -> str:
        """What expressions call the result as a model."""
        return f"hidden states of {self.model}"

    @property
    def file(self) -> str:
        return f"{self.digest}.safetensors"

    @property
    def identity(self) -> str:
        """What specifications of shards know the result by."""
        return f"hidden:{self.digest}"
