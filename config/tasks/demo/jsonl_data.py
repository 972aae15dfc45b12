"""Questions from a JSON Lines file beside this module: no network, no cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets


def load(file: str, split: str = "test", **_metadata: Any) -> datasets.DatasetDict:
    """Return the rows of a file as one split; lm-eval calls it with a task's ``dataset_kwargs``."""
    with open(Path(__file__).parent / file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows)})
