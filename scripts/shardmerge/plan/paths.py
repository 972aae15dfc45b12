"""Where results lie. Rules spell the same places as patterns; a test compares them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.weightfolders import folder_below, in_folder

#: A model's file of the hashes of all its other files.
CHECKSUMS = "SHA256SUMS"
#: The picture of its coefficients, which its card shows.
PICTURE = "coefficients.svg"
#: Its signature, under the name that model-signing itself looks for; no part of the checksums.
SIGNATURE = "model.sig"
#: A model's copy of its recipe.
RECIPE = "mergekit_config.yml"


@dataclass(frozen=True)
class Paths:
    """The files of a results folder.

    Args:
        results: The folder.
    """

    results: str

    def folder(self, name: str) -> str:
        """Return the folder of all that is made of a build."""
        return f"{self.results}/{name}"

    def build(self, name: str, file: str) -> str:
        """Return the path of a file about a build that is no part of its model."""
        return f"{self.folder(name)}/{file}"

    def model(self, name: str) -> str:
        """Return the folder of a build's model."""
        return self.build(name, "model")

    def model_file(self, name: str, file: str) -> str:
        """Return the path of a file of a build's model."""
        return f"{self.model(name)}/{file}"

    def tokenizer_file(self, name: str, file: str) -> str:
        """Return the path of a tokenizer's file before it is copied into the model."""
        return self.build(name, f"tokenizer/{file}")

    def benchmark_file(self, name: str, file: str) -> str:
        """Return the path of a build's benchmark result or table."""
        return self.build(name, f"benchmarks/{file}")

    def measurement(self, file: str) -> str:
        """Return the path of a model's benchmark result, or of what compares all models."""
        return f"{self.results}/benchmarks/{file}"

    def report_file(self, name: str, file: str) -> str:
        """Return the path of a build's plot or table."""
        return self.build(name, f"report/{file}")

    def export(self, name: str, form: str, file: str) -> str:
        """Return the path of a file, or of a variant's folder, of a build's export."""
        return self.build(name, f"exports/{form}/{file}")

    def export_check(self, name: str, form: str, variant: str) -> str:
        """Return the path of what the check of a variant of an export found."""
        return self.build(name, f"exports/checks/{form}/{variant}.json")

    def export_receipt(self, name: str, form: str) -> str:
        """Return the path of the receipt of an export's upload."""
        return self.build(name, f"exports/{form}.published.json")

    def made(self, folder: str, file: str) -> str:
        """Return the path of a source that a job makes."""
        return f"{self.results}/{folder}/{file}"

    def adapter(self, name: str) -> str:
        """Return the folder of an adapter."""
        return self.build(name, "adapter")

    def adapter_file(self, name: str, file: str) -> str:
        """Return the path of a file of an adapter's folder."""
        return self.build(name, f"adapter/{file}")

    def update(self, name: str, file: str) -> str:
        """Return the path of a shard of what an adapter's model has beyond its base."""
        return self.build(name, f"updates/{file}")

    def factors(self, name: str, file: str) -> str:
        """Return the path of a file of the factors of an adapter."""
        return self.build(name, f"factors/{file}")

    def delta(self, pair: str, file: str) -> str:
        """Return the path of a shard of stored task vectors.

        Args:
            pair: Names both models and the type.
            file: The shard's name.
        """
        return f"{self.results}/deltas/{pair}/{file}"


def record_path(shard: str | os.PathLike[str]) -> str:
    """Return the path of what the job that wrote a shard recorded.

    Args:
        shard: Of a model, or of stored task vectors.
    """
    return _about(Path(shard), "records")


def check_record_path(shard: str | os.PathLike[str]) -> str:
    """Return the path of what the check of a shard found; arguments as of ``record_path``."""
    return _about(Path(shard), "checks")


def record_of_check(check: str | os.PathLike[str]) -> str:
    """Return the path of the record of the shard that a check is of."""
    check = Path(check)
    below = folder_below(check)
    parent = check.parent.parent.parent if below else check.parent.parent
    return f"{parent}/records/{in_folder(below, check.name)}"


def _about(shard: Path, folder: str) -> str:
    below = folder_below(shard)
    parent = shard.parent.parent if below else shard.parent
    parent = parent.parent if parent.name == "model" else parent
    return f"{parent}/{folder}/{in_folder(below, shard.stem)}.json"
