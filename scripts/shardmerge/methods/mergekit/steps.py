"""mergekit 0.1.5's sums as steps, each rounded where the kernel rounds: the same bits, in one pass.

A function here gets a method's inputs as a ``Group`` whose tensors are a writer's values. It raises
``Unsupported`` where torch adds in an order of its own, as it does from five terms on.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from functools import cache

from shardmerge.methods.contract import Group
from shardmerge.methods.program import Unsupported, Writer, in_order, rounded, sum_of

#: Terms that torch adds in order, whatever the shape.
_FEW = 4


def linear(group: Group, writer: Writer) -> int:
    """Add weighted inputs in float32, divide once, round once."""
    dtype = _dtype(group, writer)
    weights = group.per_input["weight"]
    if weights == (1.0,):
        return writer.round(in_order(writer, group.tensors), dtype)
    if not torch_fuses():
        raise Unsupported
    mixed = writer.step("zero")
    for value, weight in zip(group.tensors, weights, strict=True):
        mixed = writer.step("fma", value, writer.constant(weight), mixed)
    if group.parameters["normalize"]:
        total = sum_of(_few([rounded(weight, "F32") for weight in weights]))
        mixed = writer.step("div", mixed, writer.constant(total))
    return writer.round(mixed, dtype)


def passthrough(group: Group, writer: Writer) -> int:
    """Return the input, or its product with the scale, rounded."""
    dtype, (value,) = _dtype(group, writer), group.tensors
    scale = group.per_input["scale"][0]
    if scale is None:
        return value
    return writer.round(writer.step("mul", value, writer.constant(scale)), dtype)


def task_arithmetic(group: Group, writer: Writer) -> int:
    """Add weighted task vectors to the base, every step rounded to its dtype."""
    dtype, base = _dtype(group, writer), group.tensors[group.base]
    if not group.others:
        return base

    def step(name: str, *operands: int) -> int:
        return writer.round(writer.step(name, *operands), dtype)

    given = [group.per_input["weight"][i] for i in _few(group.others)]
    weights = [rounded(weight, dtype) for weight in given]
    vectors = [step("sub", group.tensors[i], base) for i in group.others]
    if set(given) != {1.0}:
        vectors = [
            step("mul", vector, writer.constant(weight))
            for vector, weight in zip(vectors, weights, strict=True)
        ]
    mixed = writer.round(in_order(writer, vectors), dtype)
    if group.parameters["normalize"]:
        total = rounded(sum_of(weights), dtype)
        if abs(total) < rounded(1e-8, dtype):  # in float16 that is 0, and 0 divides
            total = 1.0
        mixed = step("div", mixed, writer.constant(total))
    if group.parameters["lambda"] != 1:
        mixed = step("mul", mixed, writer.constant(group.parameters["lambda"]))
    return step("add", base, mixed)


@cache
def torch_fuses() -> bool:
    """Whether torch's ``addcmul`` rounds once: not on x86 processors without such instructions."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    from llvmlite import binding

    # which makes torch do as on such a processor
    plain = os.environ.get("ATEN_CPU_CAPABILITY") == "default"
    return not plain and bool(binding.get_host_cpu_features().get("fma"))


def _few(numbers: Sequence) -> Sequence:
    if len(numbers) > _FEW:
        raise Unsupported
    return numbers


def _dtype(group: Group, writer: Writer) -> str:
    """Return the code of the type that all inputs have."""
    (dtype, *others) = {writer.dtypes[value] for value in group.tensors}
    if others:
        raise Unsupported
    return dtype


#: By method.
MERGEKIT: dict[str, Callable[[Group, Writer], int]] = {
    "linear": linear,
    "passthrough": passthrough,
    "task_arithmetic": task_arithmetic,
}
