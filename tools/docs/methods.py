"""The reference of the merge methods, made from the registry."""

from __future__ import annotations

import re
from typing import Any

from shardmerge.base.markdown import table
from shardmerge.base.numerics import FLOAT32
from shardmerge.engine.memory import TUNING
from shardmerge.methods.registry import (
    REQUIRED,
    Inputs,
    MergeMethod,
    Parameter,
    bounds_of,
    in_mergekit,
    methods,
)

_INTRODUCTION = """\
# Merge methods

Generated from the registry by `tools/docs`; do not edit.

Every method of mergekit 0.1.5 is here under its name, with its parameters and defaults.
Not in mergekit 0.1.5: {own}.

In a formula, `x_i` is a model's tensor, `base` the base model's, and `w_i` the weight.

**In float32 numerics** (the default) a method computes in float32, or in float64 if a source is
float64. Sums over a tensor are float64 in a fixed order, and `exp`, `log`, `sin`, `cos` and `acos`
are our own ([numerics.md](numerics.md)). The bits do not depend on the processor, the device or the
number of threads, but for methods that decompose matrices ({decomposed}),
and for what a model computes while it reads a text ({reading}).
If a method chooses at random, the random number of an element depends only on the recipe's `seed`,
the stage, the tensor, the model and the element's index. So a shard comes out the same whatever
else is built. Of equal magnitudes, the first count as larger.

**In mergekit-0.1.5 numerics** the result has the bits that mergekit 0.1.5 computes on the same
processor. On another processor, `arcee_fusion` and `linear` may have other bits. There are two more
limits:

- A sum over a whole tensor can depend on the number of threads (with `rescale`, and in `slerp`,
  `nuslerp`, `multislerp`, `karcher`, `model_stock` and `sce`). So a job needs as many threads as
  mergekit had.
- mergekit draws random numbers from one generator for the whole run, in the order in which its
  scheduler reaches the tensors ({random}, and
  `arcee_fusion` above a million elements). With that, no shard could be built alone. Here each
  tensor has its own generator. Its bits are mergekit's if mergekit's generator is seeded in the
  same way.
"""
_LIBRARY = """\
The bits depend on the library that decomposes matrices (LAPACK, cuSOLVER), its version and the
processor. Checks of shards compare with a bound on what another library may make, and verify large
tensors by products with random vectors
([how](numerics.md#large-tensors-of-methods-that-call-libraries)).
"""
#: How methods are computed that need to know whole models, by what is measured of these.
_MEASURED = {
    "grams": "from [what jobs measure](howto/measured.md) of each model: layers whole, with memory "
    "for 16 Gram matrices, since equations are solved; all else as a sum",
    "fisher": "from [what jobs measure](howto/measured.md) of each model, element by element, in "
    "blocks",
    "norms": "from [what jobs measure](howto/measured.md) of each model, element by element, in "
    "blocks; a row of each coefficient is held",
}
_COLUMNS = ("Parameter", "One for each", "Type", "Default", "Bounds", "Meaning")
_SCOPE = {"shared": "tensor", "input": "model", "model": "model but the base"}


def methods_markdown() -> str:
    """Return the text of ``docs/methods.md``."""
    declared = methods()
    random = ", ".join(f"`{m.name}`" for m in declared if not m.deterministic)
    own = ", ".join(f"`{m.name}`" for m in declared if not in_mergekit(m.name))
    decomposed = ", ".join(f"`{m.name}`" for m in declared if _bounded(m))
    reading = ", ".join(f"`{m.name}`" for m in declared if m.parameter("text"))
    rows = [[f"[`{m.name}`](#{m.name})", m.title, _plain(m.summary)] for m in declared]
    parts = [
        _INTRODUCTION.format(random=random, own=own, decomposed=decomposed, reading=reading),
        table(["`merge_method`", "Name", "Result"], rows),
        *map(_section, declared),
    ]
    return "\n".join(parts)


def _section(declared: MergeMethod) -> str:
    text = _plain(declared.formula)
    parts = [
        f"## {declared.name}\n",
        f"{text}\n",
        f"Reference: <{declared.reference}>. Inputs: {_inputs(declared.inputs)}."
        f" Computed {_way(declared)}.\n",
    ]
    if _bounded(declared):
        parts.append(_LIBRARY)
    if declared.parameters:
        parts.append(table(_COLUMNS, map(_row, declared.parameters)))
    return "\n".join(parts)


def _bounded(declared: MergeMethod) -> bool:
    """Whether a library decides a method's bits."""
    measure = declared.measure
    return bool(declared.bounds or (measure and bounds_of(measure.step)))


def _row(parameter: Parameter) -> tuple[str, ...]:
    return (
        f"`{parameter.name}`",
        _SCOPE[parameter.scope],
        parameter.type.__name__,
        _default(parameter.default),
        _bounds(parameter),
        parameter.description,
    )


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "required"
    if value is None:
        return "unset"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bounds(parameter: Parameter) -> str:
    low, high = parameter.minimum, parameter.maximum
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"at least {low:g}"
    return "" if high is None else f"at most {high:g}"


def _inputs(inputs: Inputs) -> str:
    if inputs.base == "required":
        least, most = inputs.minimum - 1, inputs.maximum and inputs.maximum - 1
        return f"a base model and {_count(least, most, 'other')}"
    if inputs.base == "optional":
        models = _count(inputs.minimum_models or 0, inputs.maximum_models, "model")
        return f"{models}, and a base model if wanted"
    return _count(inputs.minimum, inputs.maximum, "model")


def _count(least: int, most: int | None, noun: str) -> str:
    if least == 0 and most is None:
        return f"any number of {noun}s"
    words = str(least) if least == most else f"at least {least}"
    words += f" and at most {most}" if most not in (None, least) else ""
    return f"{words} {noun}{'' if max(least, most or 0) == 1 else 's'}"


def _way(declared: MergeMethod) -> str:
    if declared.measure:
        return _MEASURED[declared.measure.kind]
    if declared.is_sum:
        return "as a sum that folds with the stages around it"
    rendering = declared.rendering(FLOAT32)
    if rendering.elementwise:
        return "element by element, in blocks"
    if rendering.passes:
        return (
            "in passes over blocks: the inputs are read several times, or once where a tensor's "
            f"take no more than {TUNING.held >> 20} MiB and are held"
        )
    space = rendering.workspace
    parts = [
        text
        for amount, text in (
            (space.tensors, f"{space.tensors:g} tensors"),
            (space.per_input, f"{space.per_input:g} tensors for each input"),
            (space.rows, f"{space.rows:g} rows"),
        )
        if amount
    ]
    beside = f"memory for {' and '.join(parts)}" if parts else "little memory"
    return f"from whole matrices, which are decomposed, with {beside} in addition to them"


def _plain(text: str) -> str:
    """Return reStructuredText's code marks as Markdown's."""
    return re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
