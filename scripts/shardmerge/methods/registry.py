"""The one registry of merge methods: what each takes, from where it comes, and its function.

A method declares its parameters, defaults, bounds, inputs and reference beside its function:

    @merge_method("linear", reference="https://arxiv.org/abs/2203.05482",
                  parameters=[Parameter("weight", float, scope="input"), ...])
    def linear(request: Request) -> LinearForm: ...

Two kinds of function exist. A *linear* method returns coefficients (``LinearForm``), which
the plan folds. Any other method gets tensors (``Group``) and returns one (see ``Kernel``).
Registering and planning import no torch; kernels import it when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.methods.contract import (
    REQUIRED,
    Group,
    Inputs,
    Kernel,
    LinearForm,
    Parameter,
    Request,
    Workspace,
)

__all__ = [
    "REQUIRED",
    "Group",
    "Inputs",
    "Kernel",
    "LinearForm",
    "MergeMethod",
    "Parameter",
    "Request",
    "Workspace",
    "in_mergekit",
    "kernel_of",
    "merge_method",
    "mergekit_kernel",
    "method",
    "methods",
    "parameter_names",
    "result_dtype",
    "step_kernel",
    "version_of",
    "workspace_elements",
]


@dataclass(frozen=True)
class MergekitKernel:
    """The bit-exact rendering of a method of mergekit 0.1.5; see ``mergekit_kernel``."""

    kernel: Kernel
    elementwise: bool
    workspace: Workspace
    promotes: bool


@dataclass(frozen=True)
class MergeMethod:
    """A registered merge method; see ``merge_method`` for the fields."""

    name: str
    title: str
    reference: str
    summary: str
    parameters: tuple[Parameter, ...]
    inputs: Inputs
    linear: Callable[[Request], LinearForm] | None = None
    kernel: Kernel | None = None
    elementwise: bool = False
    workspace: Workspace = Workspace()
    deterministic: bool = True
    check: Callable[[Request], None] | None = None
    version: int = 1

    def parameter(self, name: str) -> Parameter | None:
        """Return the parameter of that name, or None."""
        return next((p for p in self.parameters if p.name == name), None)


@dataclass(frozen=True)
class StepKernel:
    """A kernel that the plan calls by itself; see ``step_kernel``."""

    kernel: Kernel
    workspace: Workspace


_METHODS: dict[str, MergeMethod] = {}
_MERGEKIT_KERNELS: dict[str, MergekitKernel] = {}
_STEPS: dict[tuple[str, str], StepKernel] = {}


def merge_method(
    name: str,
    *,
    title: str,
    reference: str,
    parameters: Sequence[Parameter] = (),
    inputs: Inputs = Inputs(),
    linear: bool = False,
    elementwise: bool = False,
    workspace: Workspace = Workspace(),
    deterministic: bool = True,
    check: Callable[[Request], None] | None = None,
    version: int = 1,
) -> Callable[[Callable], Callable]:
    """Register the decorated function as a merge method.

    Args:
        name: As recipes write it under ``merge_method``.
        title: Name for people.
        reference: Paper or specification that the formula comes from.
        parameters: In the order in which the documentation lists them.
        inputs: What inputs it needs.
        linear: The function takes a Request and returns a LinearForm.
        elementwise: Each output element depends on the inputs' elements at the same place only,
            so that the engine may pass blocks instead of whole tensors.
        workspace: Memory that the kernel allocates; the job's ``mem_mb`` counts the inputs, the
            result and this (``workspace_elements``).
        deterministic: False where a random generator decides (then it is keyed by content).
        check: Raises UserError where values that are each in bounds do not go together.
        version: Grows when the method's bytes in float32 numerics change: what was built with it
            is then built anew, and nothing else is (golden tests watch it).

    Raises:
        ValueError: If the name is taken.
    """

    def register(function: Callable) -> Callable:
        if name in _METHODS:
            raise ValueError(f"merge method {name!r} is registered twice")
        _METHODS[name] = MergeMethod(
            name=name,
            title=title,
            reference=reference,
            summary=(function.__doc__ or "").strip().split("\n")[0],
            parameters=tuple(parameters),
            inputs=inputs,
            linear=function if linear else None,
            kernel=None if linear else function,
            elementwise=elementwise or linear,
            workspace=workspace,
            deterministic=deterministic,
            check=check,
            version=version,
        )
        return function

    return register


def mergekit_kernel(
    name: str,
    *,
    elementwise: bool = False,
    workspace: Workspace = Workspace(tensors=2.0),
    promotes: bool = False,
) -> Callable[[Kernel], Kernel]:
    """Register the decorated kernel as the bit-exact rendering of mergekit 0.1.5's method.

    Args:
        name: The method's name.
        elementwise: Given any block, with its ``offset`` and the ``total``, it returns the bits
            that it would for the whole tensor.
        workspace: Memory that the kernel allocates.
        promotes: The result is float32 where the inputs are float16 or bfloat16.

    Raises:
        ValueError: If the name is taken.
    """

    def register(function: Kernel) -> Kernel:
        if name in _MERGEKIT_KERNELS:
            raise ValueError(f"mergekit kernel {name!r} is registered twice")
        _MERGEKIT_KERNELS[name] = MergekitKernel(function, elementwise, workspace, promotes)
        return function

    return register


def step_kernel(
    name: str, numerics: str, *, workspace: Workspace = Workspace()
) -> Callable[[Kernel], Kernel]:
    """Register the decorated kernel as a step that no recipe names; it gets whole tensors.

    Args:
        name: Of the step, in a ``Call``; no merge method's.
        numerics: One of ``spec.NUMERICS``.
        workspace: Memory that the kernel allocates.

    Raises:
        ValueError: If the name is taken.
    """

    def register(function: Kernel) -> Kernel:
        if (name, numerics) in _STEPS or name in _METHODS:
            raise ValueError(f"step {name!r} is registered twice")
        _STEPS[name, numerics] = StepKernel(function, workspace)
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


def kernel_of(name: str, numerics: str) -> tuple[Kernel, bool]:
    """Return the kernel of a method in a numerics mode, and whether it is elementwise.

    Raises:
        UserError: If the method has no kernel in that mode.
    """
    if step := _STEPS.get((name, numerics)):
        return step.kernel, False
    if numerics == "mergekit-0.1.5":
        found = _mergekit(name)
        return found.kernel, found.elementwise
    declared = method(name)
    if declared.kernel is None:
        raise UserError(f"merge_method {name!r} is linear and has no kernel in {numerics!r}")
    return declared.kernel, declared.elementwise


def version_of(name: str, numerics: str) -> int:
    """Return the version of a method's bytes; what mergekit makes of it does not change."""
    return _METHODS[name].version if numerics == "float32" and name in _METHODS else 1


def in_mergekit(name: str) -> bool:
    """Whether mergekit 0.1.5 has the method, so that it has a kernel in its numerics."""
    method(name)
    return name in _MERGEKIT_KERNELS


def workspace_elements(name: str, numerics: str, shape: Sequence[int], inputs: int) -> int:
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
    if step := _STEPS.get((name, numerics)):
        return step.workspace.elements(shape, inputs)
    found = _mergekit(name) if numerics == "mergekit-0.1.5" else method(name)
    return found.workspace.elements(shape, inputs)


def result_dtype(name: str, numerics: str, dtype: str) -> str:
    """Return the safetensors code of what a kernel returns for inputs of a dtype.

    In mergekit numerics some methods return float32 for 16-bit inputs, which is what mergekit
    then saves where a recipe has no ``out_dtype``.
    """
    if (name, numerics) in _STEPS:
        return dtype
    if numerics == "mergekit-0.1.5" and _mergekit(name).promotes and dtype in ("F16", "BF16"):
        return "F32"
    return dtype


def _mergekit(name: str) -> MergekitKernel:
    if not in_mergekit(name):
        raise UserError(f"merge_method {name!r} is not one of mergekit 0.1.5's")
    return _MERGEKIT_KERNELS[name]
