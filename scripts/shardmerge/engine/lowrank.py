"""Products of two small factors, made block by block: what LoRA adapters add to a matrix.

The factors of one tensor are held; the product never is. In float32 numerics an element is the sum
over the rank, in order, every product and every sum rounded once: the same on every processor, for
any block and any number of threads. In mergekit numerics it is what torch's matrix product makes on
a CPU, as peft calls it; its kernels give a row the same bits in any block of at least ROWS rows.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable

import torch

from shardmerge.algebra import expression as ex
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.numerics import Numerics
from shardmerge.engine.buffers import torch_dtype
from shardmerge.engine.device import Cuda, Host, host_buffer
from shardmerge.engine.input_files import InputFiles

#: Rows of the smallest block that torch multiplies by the kernel that it takes for whole matrices.
ROWS = 16

#: Returns a tensor of a source whole, in a dtype, where it can be computed with.
Load = Callable[[ex.Source, str], torch.Tensor]
#: Returns a buffer of a number and of at least so many elements.
Scratch = Callable[[int, int], torch.Tensor]


class Product:
    """The product of two factors that are held.

    Args:
        node: What it is.
        b: [rows, rank], in the type that the node is computed in.
        a: [rank, columns], likewise.
        ordered: Whether the sum over the rank is taken in order, else by torch's matrix product.
    """

    def __init__(self, node: ex.LowRank, b: torch.Tensor, a: torch.Tensor, ordered: bool) -> None:
        self._left, self._right = (a.t(), b.t()) if node.transposed else (b, a)
        self._scale, self._transposed, self._ordered = node.scale, node.transposed, ordered
        if ordered:
            self._left, self._right = self._left.contiguous(), self._right.contiguous()
        self.finite = bool(a.isfinite().all()) and bool(b.isfinite().all())

    def block(self, first: int, count: int, scratch: Scratch) -> torch.Tensor:
        """Return consecutive elements of the flattened product, in a buffer or in fresh memory.

        Args:
            first, count: Which.
            scratch: Gives buffers.
        """
        columns = self._right.shape[1]
        top, left = divmod(first, columns)
        bottom = -(-(first + count) // columns)
        if not self._ordered:
            bottom = max(bottom, min(ROWS, len(self._left)))
            top = max(0, min(top, bottom - ROWS))
            return self._matmul(top, bottom)[first - top * columns :][:count]
        if bottom - top == 1:  # within one row
            return self._sum(top, bottom, slice(left, left + count), scratch)
        return self._sum(top, bottom, slice(None), scratch)[left : left + count]

    def _sum(self, top: int, bottom: int, columns: slice, scratch: Scratch) -> torch.Tensor:
        left, right = self._left[top:bottom], self._right[:, columns]
        shape = len(left), right.shape[1]
        total, product = (scratch(i, math.prod(shape))[: math.prod(shape)] for i in range(2))
        total, product = total.view(shape), product.view(shape)
        torch.mul(left[:, :1], right[:1], out=total)
        for k in range(1, len(right)):
            torch.mul(left[:, k : k + 1], right[k : k + 1], out=product)
            total.add_(product)
        return total.mul_(self._scale).view(-1)

    def _matmul(self, top: int, bottom: int) -> torch.Tensor:
        if self._transposed:  # peft multiplies first and transposes then
            part = (self._right.t() @ self._left.t()[:, top:bottom]).t()
        else:
            part = self._left[top:bottom] @ self._right
        return (part * self._scale).reshape(-1)


def factor_loader(files: InputFiles, place: Host | Cuda) -> Load:
    """Return a function that reads a factor from a job's files to where a lane computes."""

    def load(factor: ex.Source, dtype: str) -> torch.Tensor:
        location, count = files.locate(factor), ex.elements(factor)
        size = tensor_bytes(location.dtype, factor.shape)
        buffer = host_buffer(size, tensor=True, pinned=place.pinned)
        files.read_elements(location, 0, count, buffer.memory)
        stored = place.inputs(buffer, size).view(torch_dtype(location.dtype))
        held = stored.view(factor.shape).to(torch_dtype(dtype))
        place.wait()
        return held

    return load


class StackedProduct:
    """The products of the experts of a layer, one behind the other.

    Args:
        node: What they are.
        b: [rows, rank * experts], an expert's columns ``experts`` apart.
        a: [experts * rank, columns].
        ordered: As of ``Product``.
    """

    def __init__(self, node: ex.LowRank, b: torch.Tensor, a: torch.Tensor, ordered: bool) -> None:
        rows = a.view(node.experts, node.rank, a.shape[1])
        columns = b.view(b.shape[0], node.rank, node.experts).permute(2, 0, 1).contiguous()
        self._parts = [
            Product(node, left, right, ordered) for left, right in zip(columns, rows, strict=True)
        ]
        self._size = b.shape[0] * a.shape[1]
        self.finite = all(part.finite for part in self._parts)

    def block(self, first: int, count: int, scratch: Scratch) -> torch.Tensor:
        """Return consecutive elements as ``Product.block`` does."""
        found, last = [], first + count
        while first < last:
            expert, begin = divmod(first, self._size)
            number = min(last - first, self._size - begin)
            part = self._parts[expert].block(begin, number, scratch)
            found.append(part if number == count else part.clone())  # scratch is used again
            first += number
        return found[0] if len(found) == 1 else torch.cat(found)


def product_of(
    node: ex.LowRank, b: torch.Tensor, a: torch.Tensor, ordered: bool
) -> Product | StackedProduct:
    """Return the product, or products, that a node is."""
    kind = Product if node.experts == 1 else StackedProduct
    return kind(node, b, a, ordered)


class Products:
    """The products that threads need, each made once while any of them holds it.

    Args:
        load: Reads a factor.
        numerics: Says in which order elements are added.
    """

    def __init__(self, load: Load, numerics: Numerics) -> None:
        self._load, self._ordered = load, numerics.own_order
        self._held: weakref.WeakValueDictionary[ex.LowRank, Product | StackedProduct] = (
            weakref.WeakValueDictionary()
        )
        self._lock = threading.Lock()

    def get(self, node: ex.LowRank) -> Product | StackedProduct:
        """Return the product of a node; it is held as long as the caller holds it."""
        with self._lock:
            product = self._held.get(node)
            if product is None:
                b, a = (self._load(factor, node.dtype) for factor in (node.b, node.a))
                product = self._held[node] = product_of(node, b, a, self._ordered)
            return product
