"""Steps of adapters that no recipe names: DoRA (Liu et al. 2024, arxiv.org/abs/2402.09353).

The group has the adapted matrix and the norms, one for each of the layer's outputs; ``transposed``
says that the matrix is [inputs, outputs].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.base.numerics import FLOAT32, MERGEKIT
from shardmerge.methods.registry import Group, Workspace, step_kernel

if TYPE_CHECKING:
    import torch


@step_kernel("dora", FLOAT32, version=2)
def _dora(group: Group) -> torch.Tensor:
    """Bring what belongs to each output of a matrix to its learnt norm."""
    import torch

    from shardmerge.methods.kernels.blocks import row_sums
    from shardmerge.methods.kernels.roots import root

    matrix, norms = group.tensors
    transposed = group.parameters["transposed"]
    by_output = matrix.t() if transposed else matrix
    if not matrix.numel():
        return matrix.clone()
    squares = row_sums(
        lambda row, column: [by_output[row, column].double().square()], *by_output.shape
    )
    lengths = torch.from_numpy(root(squares[0].numpy()))
    factor = (norms.reshape(-1).double().cpu() / lengths).to(matrix.device, matrix.dtype)
    return matrix * (factor if transposed else factor[:, None])


@step_kernel("dora", MERGEKIT, workspace=Workspace(tensors=1.0))
def _peft_dora(group: Group) -> torch.Tensor:
    """Do the same with the operations and roundings of peft's ``merge_and_unload`` on a CPU."""
    import torch

    matrix, norms = group.tensors
    transposed = group.parameters["transposed"]
    lengths = torch.linalg.norm(matrix.t() if transposed else matrix, dim=1)
    factor = norms.reshape(-1).to(matrix.dtype) / lengths
    return (factor if transposed else factor[:, None]) * matrix
