"""What the registry holds of a merge method, and how kernels are attached to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.methods.contract import (
    BeginPasses,
    BoundedKernel,
    Inputs,
    KeptElements,
    Kernel,
    LinearForm,
    Measure,
    Parameter,
    PassesFit,
    Probing,
    Request,
    StepWriter,
    Workspace,
)


@dataclass(frozen=True)
class Rendering:
    """A kernel in one of the numerics, and what the engine must know of it.

    Args:
        kernel: The function.
        elementwise: Each output element depends on the inputs' elements at the same place only:
            given any block, with its ``offset`` and the ``total``, the kernel returns the bits
            that it would for the whole tensor.
        workspace: Memory that the kernel allocates; the job's ``mem_mb`` counts the inputs, the
            result and this (``workspace_elements``).
        promotes: The result is float32 where the inputs are float16 or bfloat16.
        skips_zeros: An input of weight 0 changes no finite value, so that it need not be read.
        passes: Begins the passes that the kernel executes, where it is so declared: nothing need
            be held whole then. In mergekit numerics they have the bits of the kernel.
        fits: Whether they are known for a group; else the kernel gets whole tensors.
        by_torch: Types of inputs of which the passes themselves import torch, wherever elements are
            made.
        chooses: Whether they ask for a ``TorchChoice`` for a group, if ever: a number of each
            element is held then, and a bit, and torch is imported.
    """

    kernel: Kernel
    elementwise: bool = False
    workspace: Workspace = Workspace()
    promotes: bool = False
    skips_zeros: bool = False
    passes: BeginPasses | None = None
    fits: PassesFit | None = None
    by_torch: Collection[str] = ()
    chooses: PassesFit | None = None


@dataclass(eq=False)
class MergeMethod:
    """A registered merge method; see ``merge_method`` for the fields that it declares.

    Args:
        summary: First line of the function's docstring.
        formula: The whole docstring.
        linear: The function of a linear method.
        renderings: Its kernels; a linear method needs none in float32 numerics.
        steps: What its mergekit kernel does to one element, where native code can do it.
        kept: Of a method that leaves elements of task vectors out, which ones stay.
        bounds: Of a method whose bits depend on a library (LAPACK), its kernel with a bound on
            that; checks of shards use it.
        probes: Of the same, how large tensors are checked.
        measure: What must be measured of whole models, or None.
    """

    name: str
    title: str
    reference: str
    summary: str
    formula: str
    parameters: tuple[Parameter, ...]
    inputs: Inputs
    linear: Callable[[Request], LinearForm] | None = None
    deterministic: bool = True
    check: Callable[[Request], None] | None = None
    version: int = 1
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    renderings: dict[Numerics, Rendering] = field(default_factory=dict)
    steps: StepWriter | None = None
    kept: KeptElements | None = None
    bounds: BoundedKernel | None = None
    probes: Probing | None = None
    measure: Measure | None = None

    @property
    def is_sum(self) -> bool:
        """Whether the result is a sum of the inputs, which the plan folds."""
        return self.linear is not None

    @property
    def kernel(self) -> Kernel | None:
        """The kernel in float32 numerics; None for a sum."""
        return self.renderings[FLOAT32].kernel if FLOAT32 in self.renderings else None

    def parameter(self, name: str) -> Parameter | None:
        """Return the parameter of that name, or None."""
        return next((p for p in self.parameters if p.name == name), None)

    def mergekit_kernel(
        self,
        *,
        elementwise: bool = False,
        workspace: Workspace = Workspace(tensors=2.0),
        promotes: bool = False,
        skips_zeros: bool = False,
    ) -> Callable[[Kernel], Kernel]:
        """Attach the decorated kernel: it has the bits of mergekit 0.1.5 (see ``Rendering``)."""

        def attach(function: Kernel) -> Kernel:
            if MERGEKIT in self.renderings:
                raise ValueError(f"mergekit kernel {self.name!r} is registered twice")
            self.renderings[MERGEKIT] = Rendering(
                function, elementwise, workspace, promotes, skips_zeros
            )
            return function

        return attach

    def mergekit_passes(
        self,
        fits: PassesFit | None = None,
        *,
        by_torch: Collection[str] = (),
        chooses: PassesFit | None = None,
    ) -> Callable[[BeginPasses], BeginPasses]:
        """Attach the decorated function: passes with the bits of the mergekit kernel.

        Args:
            fits: Whether they are known for a group (see ``Rendering``).
            by_torch: Types of inputs of which they import torch.
            chooses: Whether they choose by torch's order (see ``Rendering``).
        """

        def attach(function: BeginPasses) -> BeginPasses:
            found = self.renderings[MERGEKIT]
            if found.passes:
                raise ValueError(f"mergekit passes of {self.name!r} are registered twice")
            self.renderings[MERGEKIT] = replace(
                found, passes=function, fits=fits, by_torch=by_torch, chooses=chooses
            )
            return function

        return attach

    def mergekit_steps(self, function: StepWriter) -> StepWriter:
        """Attach the decorated function: it writes the mergekit kernel's arithmetic as steps.

        The function raises ``program.Unsupported`` for what torch computes in another order.
        """
        if self.steps:
            raise ValueError(f"steps of {self.name!r} are registered twice")
        self.steps = function
        return function

    def keeps(self, function: KeptElements) -> KeptElements:
        """Attach the decorated function: it says which elements of task vectors stay."""
        if self.kept:
            raise ValueError(f"{self.name!r} says twice what it keeps")
        self.kept = function
        return function

    def bounded(self, function: BoundedKernel) -> BoundedKernel:
        """Attach the decorated function: the kernel of a method whose bits a library decides."""
        if self.bounds:
            raise ValueError(f"bounds of {self.name!r} are registered twice")
        self.bounds = function
        return function

    def probed(self, probing: Probing) -> None:
        """Attach how large tensors of a method are checked whose bits a library decides."""
        if self.probes:
            raise ValueError(f"probes of {self.name!r} are registered twice")
        self.probes = probing

    def rendering(self, numerics: Numerics) -> Rendering:
        """Return its kernel in one of the numerics.

        Raises:
            UserError: If it has none.
        """
        if found := self.renderings.get(numerics):
            return found
        if self.is_sum and numerics == FLOAT32:
            raise UserError(f"merge_method {self.name!r} is linear and has no kernel in {numerics}")
        raise UserError(f"merge_method {self.name!r} is not one of mergekit 0.1.5's")
