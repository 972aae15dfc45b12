"""The one registry of merge methods: all that the rest of the library knows of any.

A method declares its parameters, defaults, bounds, inputs and reference beside its function, whose
docstring is the formula. What else it has is attached to it below, in the same module:

    @merge_method("linear", reference="https://arxiv.org/abs/2203.05482",
                  parameters=[Parameter("weight", float, scope="input"), ...])
    def linear(request: Request) -> LinearForm: ...

    @linear.mergekit_kernel(elementwise=True)
    def _(group: Group) -> torch.Tensor: ...

Two kinds of function exist. A *linear* method returns coefficients (``LinearForm``), which
the plan folds. Any other method gets tensors (``Group``) and returns one (see ``Kernel``).
Registering and planning import no torch; kernels import it when they run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.methods.contract import (
    REQUIRED,
    BeginPasses,
    BoundedKernel,
    Group,
    Inputs,
    Kernel,
    LinearForm,
    Measure,
    Parameter,
    PassesFit,
    Probing,
    Recorded,
    Request,
    StepWriter,
    Workspace,
)
from shardmerge.methods.method import MergeMethod, Rendering

if TYPE_CHECKING:
    import torch

__all__ = [
    "REQUIRED",
    "Group",
    "Inputs",
    "Kernel",
    "LinearForm",
    "Measure",
    "MergeMethod",
    "Parameter",
    "Probing",
    "Recorded",
    "Rendering",
    "Request",
    "Workspace",
    "bounds_of",
    "in_mergekit",
    "kernel_of",
    "merge_method",
    "method",
    "methods",
    "parameter_names",
    "passes_choose",
    "passes_fit",
    "passes_of",
    "passes_use_torch",
    "probing_of",
    "result_dtype",
    "step_kernel",
    "steps_of",
    "version_of",
    "workspace_elements",
]


_METHODS: dict[str, MergeMethod] = {}
_STEPS: dict[str, dict[Numerics, Rendering]] = {}
_STEP_VERSIONS: dict[tuple[str, Numerics], int] = {}
_STEP_BOUNDS: dict[str, BoundedKernel] = {}
_STEP_PROBES: dict[str, Probing] = {}


def merge_method(
    name: str,
    *,
    title: str,
    reference: str,
    parameters: Sequence[Parameter] = (),
    inputs: Inputs = Inputs(),
    linear: bool = False,
    elementwise: bool = False,
    passes: bool = False,
    workspace: Workspace = Workspace(),
    deterministic: bool = True,
    check: Callable[[Request], None] | None = None,
    version: int = 1,
    examples: Mapping[str, Mapping[str, Any]] | None = None,
    measure: Measure | None = None,
) -> Callable[[Callable], MergeMethod]:
    """Register the decorated function as a merge method, and return the method in its place.

    Args:
        name: As recipes write it under ``merge_method``.
        title: Name for people.
        reference: Paper or specification that the formula comes from.
        parameters: In the order in which the documentation lists them.
        inputs: What inputs it needs.
        linear: The function takes a Request and returns a LinearForm.
        elementwise, workspace: Of its kernel, see ``Rendering``.
        passes: The function takes a Group and returns passes (``passes.Passes``).
        deterministic: False where a random generator decides (then it is keyed by content).
        check: Raises UserError where values that are each in bounds do not go together.
        version: Grows when the method's bytes in float32 numerics change: what was built with it
            is then built anew, and nothing else is (golden tests watch it).
        examples: Values that are not the parameters' ordinary ones, by a word for them: the golden
            tests watch the bytes of each, so that all of the method's arithmetic is used.
        measure: What must be measured of whole models; such a method is linear else.

    Raises:
        ValueError: If the name is taken.
    """

    def register(function: Callable) -> MergeMethod:
        if name in _METHODS or name in _STEPS:
            raise ValueError(f"merge method {name!r} is registered twice")
        formula = inspect.getdoc(function) or ""
        kernel = {} if linear else {FLOAT32: _rendered(function, elementwise, workspace, passes)}
        _METHODS[name] = MergeMethod(
            name=name,
            title=title,
            reference=reference,
            summary=formula.split("\n")[0],
            formula=formula,
            parameters=tuple(parameters),
            inputs=inputs,
            linear=function if linear else None,
            deterministic=deterministic,
            check=check,
            version=version,
            examples=examples or {"": {}},
            renderings=kernel,
            measure=measure,
        )
        return _METHODS[name]

    return register


def step_kernel(
    name: str,
    numerics: Numerics,
    *,
    elementwise: bool = False,
    passes: bool = False,
    workspace: Workspace = Workspace(),
    promotes: bool = False,
    version: int = 1,
    bounds: BoundedKernel | None = None,
    probes: Probing | None = None,
) -> Callable[[Callable], Callable]:
    """Register the decorated kernel as a step that no recipe names.

    Args:
        name: Of the step, in a ``Call``; no merge method's.
        numerics: In which it is used.
        elementwise, workspace, promotes: Of the kernel, see ``Rendering``; kernels that are not
            elementwise get whole tensors.
        passes: As of ``merge_method``.
        version: Grows when its bytes change, as a method's does.
        bounds, probes: Of a step whose bits depend on a library, see ``MergeMethod``.

    Raises:
        ValueError: If the name is taken.
    """

    def register(function: Callable) -> Callable:
        if numerics in _STEPS.get(name, {}) or name in _METHODS:
            raise ValueError(f"step {name!r} is registered twice")
        found = _rendered(function, elementwise, workspace, passes)
        _STEPS.setdefault(name, {})[numerics] = replace(found, promotes=promotes)
        _STEP_VERSIONS[name, numerics] = version
        if bounds:
            _STEP_BOUNDS[name] = bounds
        if probes:
            _STEP_PROBES[name] = probes
        return function

    return register


def method(name: str, where: str | None = None) -> MergeMethod:
    """Return the method of that name.

    Raises:
        UserError: If there is none; names the nearest.
    """
    if name not in _METHODS:
        raise UserError(f"unknown merge_method {name!r}", where, did_you_mean(name, _METHODS))
    return _METHODS[name]


def methods() -> list[MergeMethod]:
    """Return all methods, by name."""
    return [_METHODS[name] for name in sorted(_METHODS)]


def parameter_names() -> tuple[str, ...]:
    """Return the names of all methods' parameters, sorted."""
    return tuple(sorted({p.name for m in methods() for p in m.parameters}))


def kernel_of(name: str, numerics: Numerics) -> tuple[Kernel, bool]:
    """Return the kernel of a method or step, and whether it is elementwise.

    Raises:
        UserError: If it has no kernel in those numerics.
    """
    found = _rendering(name, numerics)
    return found.kernel, found.elementwise


def kernel_of_passes(begin: BeginPasses) -> Kernel:
    """Return the kernel that executes passes by torch."""

    def kernel(group: Group) -> torch.Tensor:
        from shardmerge.methods.kernels.execute import execute

        return execute(begin, group)

    return kernel


def passes_of(name: str, numerics: Numerics) -> BeginPasses | None:
    """Return what begins a method's passes, if it is so declared."""
    return _rendering(name, numerics).passes


def passes_fit(name: str, numerics: Numerics) -> PassesFit | None:
    """Return what says whether a method's passes are known for a group, if not for all."""
    return _rendering(name, numerics).fits


def passes_use_torch(name: str, numerics: Numerics, dtype: str) -> bool:
    """Whether a method's passes import torch even where native code makes the elements.

    Args:
        name, numerics: As of ``kernel_of``.
        dtype: Code of the inputs' type.
    """
    return dtype in _rendering(name, numerics).by_torch


def passes_choose(name: str, numerics: Numerics) -> PassesFit | None:
    """Return what says whether a method's passes choose by torch's order, if any do."""
    return _rendering(name, numerics).chooses


def steps_of(name: str, numerics: Numerics) -> StepWriter | None:
    """Return what writes a method's arithmetic as steps, if native code can do it."""
    return None if numerics.folds or name in _STEPS else method(name).steps


def bounds_of(name: str) -> BoundedKernel | None:
    """Return the kernel with bounds of a method or step that a library decides, else None."""
    return _STEP_BOUNDS.get(name) if name in _STEPS else method(name).bounds


def probing_of(name: str) -> Probing | None:
    """Return how large tensors of a method or step are checked that a library decides, or None."""
    return _STEP_PROBES.get(name) if name in _STEPS else method(name).probes


def version_of(name: str, numerics: Numerics) -> int:
    """Return the version of a method's or step's bytes; what mergekit makes does not change."""
    if name in _STEPS:
        return _STEP_VERSIONS[name, numerics]
    return 1 if numerics == MERGEKIT else method(name).version


def in_mergekit(name: str) -> bool:
    """Whether mergekit 0.1.5 has the method, so that it has a kernel in its numerics."""
    return MERGEKIT in method(name).renderings


def workspace_elements(name: str, numerics: Numerics, shape: Sequence[int], inputs: int) -> int:
    """Return how many elements a kernel allocates beside its inputs and its result.

    Args:
        name: The method's name.
        numerics: As in ``kernel_of``.
        shape: Of one input; for an elementwise kernel, of the block that it is given.
        inputs: Their number, the base among them.

    Returns:
        Elements of the type that the inputs have when the kernel gets them, but of at least
        4 bytes each.
    """
    return _rendering(name, numerics).workspace.elements(shape, inputs)


def result_dtype(name: str, numerics: Numerics, dtype: str) -> str:
    """Return the safetensors code of what a method makes of inputs of a dtype.

    In mergekit numerics some methods return float32 for 16-bit inputs, which is what mergekit
    then saves where a recipe has no ``out_dtype``.
    """
    if numerics == FLOAT32:
        return dtype
    return "F32" if _rendering(name, numerics).promotes and dtype in ("F16", "BF16") else dtype


def _rendered(
    function: Callable, elementwise: bool, workspace: Workspace, passes: bool
) -> Rendering:
    """Return the rendering of a function that is a kernel, or begins passes."""
    if passes:
        return Rendering(kernel_of_passes(function), elementwise, workspace, passes=function)
    return Rendering(function, elementwise, workspace)


def _rendering(name: str, numerics: Numerics) -> Rendering:
    steps = _STEPS.get(name)
    return steps[numerics] if steps else method(name).rendering(numerics)
