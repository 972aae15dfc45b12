"""What every method makes of fixed numbers, as hashes: run by tests in processes of their own.

python method_bytes.py FOLDER    prints {"method (variant) DTYPE": "SHA-256", ...} as JSON
python method_bytes.py --add     writes hashes of new methods beside it, and of new versions
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from helpers import engine_cases as cases
from helpers import kernel_cases
from shardmerge.algebra import expression as ex
from shardmerge.base.numerics import FLOAT32
from shardmerge.engine import native
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.registry import Group, kernel_of, methods

#: What they must be: the same on every processor.
GOLDEN = json.loads((Path(__file__).with_suffix(".json")).read_text())
#: Elements that fill neither a vector nor a window of any size; the last is more than a block.
SHAPES = ((37, 211), (3, BLOCK // 2 + 13))
#: Sizes of blocks and windows, with compute threads, and whether native code is used.
_SMALL = {"block": 1000, "windows": (12288,)}
CUTS = (({}, 1, True), (_SMALL, 2, True), (_SMALL, 2, False))


def numbers(shape: tuple[int, ...], factor: int, spread: float) -> torch.Tensor:
    """Return numbers by integer arithmetic and a division, the same with every torch."""
    steps = torch.arange(math.prod(shape), dtype=torch.int64)
    # cubes, so that large ones are rare as in a model
    values = (steps * factor % 8191 - 4095).double() / 4096
    return (values * values * values * spread).reshape(shape)


def groups(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, tuple[str, Group]]:
    """Return for each method and variant a group of fine-tunes of one base."""
    found = {}
    for declared in methods():
        if declared.kernel is None or declared.bounds:
            continue  # a sum, or what a library decides the bits of
        for variant, values in declared.examples.items():
            group = kernel_cases.ordinary(declared.name, (1,), models=3, **values)
            base = numbers(shape, 911, 0.3)
            made = [base] + [
                base + numbers(shape, factor, 0.05)
                for factor in (613, 577, 353, 127)[: len(group.tensors) - 1]
            ]
            label = f"{declared.name} ({variant})" if variant else declared.name
            tensors = [tensor.to(dtype) for tensor in made]
            found[label] = (declared.name, replace(group, tensors=tensors))
    return found


def by_the_engine(
    folder: Path, cut: dict[str, object], threads: int, device: str = "cpu"
) -> dict[str, str]:
    """Return the hashes of tensors that the engine makes of float16 and of float64 sources."""
    hashes = {}
    for code in ("F16", "F64"):
        dtype = torch.float16 if code == "F16" else torch.float64
        made = groups(SHAPES[0], dtype)
        most = max((group.tensors for _, group in made.values()), key=len)
        models = cases.Models(folder / code, {f"m{i}": {"w": t} for i, t in enumerate(most)})
        rows = {
            label: ("F32" if code == "F16" else "F64", call_of(name, group, models))
            for label, (name, group) in made.items()
        }
        with cases.tuned(**cut):
            spec = models.spec(rows, allow_nonfinite=True)
            models.build(spec, threads=threads, device=device)
        for label, tensor in models.load().items():
            hashes[f"{label} {code}"] = _hash(tensor)
    return hashes


def by_kernels(threads: int) -> dict[str, str]:
    """Return the hashes of what kernels make of tensors of more than a block."""
    torch.set_num_threads(threads)
    return {
        f"{label} large": _hash(kernel_of(name, FLOAT32)[0](group))
        for label, (name, group) in groups(SHAPES[1], torch.float32).items()
    }


def call_of(name: str, group: Group, models: cases.Models) -> ex.Call:
    """Return the call of a method on the models' tensors."""
    return ex.Call(
        method=name,
        inputs=tuple(models.source(f"m{i}") for i in range(len(group.tensors))),
        base=group.base,
        parameters=tuple(sorted(group.parameters.items())),
        per_input=tuple(sorted(group.per_input.items())),
        tensor=group.name,
        models=group.models,
        output_shape=tuple(group.tensors[0].shape),
    )


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(cases.raw(tensor)).hexdigest()[:16]


def hashes_of(folder: Path) -> dict[str, str]:
    """Return all hashes, the same for any threads, blocks and windows, with or without torch."""
    found, usable = [], native.is_usable
    for cut, threads, by_native in CUTS:
        native.is_usable = usable if by_native else lambda: False
        found.append(by_the_engine(folder, cut, threads) | by_kernels(threads))
    native.is_usable = usable
    for other in found[1:]:
        assert other == found[0], sorted(k for k in other if other[k] != found[0][k])
    return found[0]


def with_new(golden: dict[str, Any], hashes: dict[str, str]) -> dict[str, Any]:
    """Return golden values with those of methods that are new or have another version."""
    versions = {m.name: m.version for m in methods() if m.version != 1}

    def is_known(label: str) -> bool:
        name = label.split(" ")[0]
        return versions.get(name) == golden["versions"].get(name) and label in golden["hashes"]

    kept = {label: golden["hashes"][label] for label in hashes if is_known(label)}
    return {"versions": versions, "hashes": hashes | kept}


def main() -> None:
    if sys.argv[1] == "--add":
        with tempfile.TemporaryDirectory() as name:
            made = with_new(GOLDEN, hashes_of(Path(name)))
        text = json.dumps(made, indent=1) + "\n"
        Path(__file__).with_suffix(".json").write_text(text)
        return
    facts = {"level": torch.backends.cpu.get_cpu_capability(), "native": native.is_usable()}
    json.dump(facts | {"hashes": hashes_of(Path(sys.argv[1]))}, sys.stdout)


if __name__ == "__main__":
    main()
