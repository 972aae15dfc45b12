"""Ours and mergekit's bits of every method: run by tests, of plain code in a process of its own.

python kernel_levels.py    prints {"level": ..., "differing": {"method DTYPE": count, ...}}
"""

from __future__ import annotations

import json
import sys

import torch
from kernel_oracle import both

from helpers import engine_cases
from helpers import kernel_cases as cases
from shardmerge.methods.registry import in_mergekit, methods

SHAPES = ((61, 523), (1013,), (300, 520))


def differing() -> dict[str, int]:
    """Return how many elements differ, by method and dtype; torch has one thread."""
    found = {}
    for name in (m.name for m in methods() if in_mergekit(m.name)):
        for dtype in cases.DTYPES:
            key = f"{name} {engine_cases.CODES[dtype]}"
            count = 0
            for shape in SHAPES:
                group = cases.ordinary(name, shape, models=3, dtype=dtype, weight=0.3, rescale=True)
                count += cases.differing(*both(name, group))
            found[key] = count
    return found


def main() -> None:
    torch.set_num_threads(1)
    level = torch.backends.cpu.get_cpu_capability().lower()
    json.dump({"level": level, "differing": differing()}, sys.stdout)


if __name__ == "__main__":
    main()
