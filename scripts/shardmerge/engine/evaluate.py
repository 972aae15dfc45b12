"""An expression as a chain of torch operations on blocks, over buffers that are made once.

Every product and every sum is rounded once, in the order of the expression, so that the result
is the same on every processor: fused multiply-add, which torch's ``add(alpha=)`` uses on some,
is kept out on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import group_of
from shardmerge.algebra.leaves import Leaves, in_passes, leaf_rows, stated_dtype, sum_dtype
from shardmerge.algebra.rows import choice_ranges, row_ranges, take
from shardmerge.base.numerics import Numerics
from shardmerge.engine.buffers import BlockBuffers, torch_dtype
from shardmerge.engine.made_natively import MadeBlocks
from shardmerge.methods.kernels.execute import TorchElements
from shardmerge.methods.passes import Map
from shardmerge.methods.registry import kernel_of

if TYPE_CHECKING:
    from shardmerge.engine.lowrank import Product, Products, StackedProduct


@dataclass(slots=True)
class Block:
    """Elements of a tensor that are evaluated at once.

    Args:
        views: The elements of each leaf, one-dimensional, in the leaf's own dtype.
        first, count: Place in the flattened tensor of the first, and their number.
        squares: Filled with (number of a task vector, its sum of squares, its base's).
        runs: Which elements they are, (first, number), where they do not all follow each other.
    """

    views: Sequence[torch.Tensor]
    first: int
    count: int
    squares: list[tuple[int, torch.Tensor, torch.Tensor | None]] = field(default_factory=list)
    runs: Sequence[tuple[int, int]] = ()


Operation = Callable[[Block], torch.Tensor]


def _by_run(operation: Operation) -> Operation:
    """Return an operation on elements that follow each other as one on any."""

    def each(block: Block) -> torch.Tensor:
        if not block.runs:
            return operation(block)
        made, place = [], 0
        for first, count in block.runs:
            views = [view[place : place + count] for view in block.views]
            # others may use the same buffers
            made.append(operation(Block(views, first, count, block.squares)).clone())
            place += count
        return torch.cat(made)

    return each


def round_into(target: torch.Tensor, value: torch.Tensor) -> None:
    """Write values to a tensor, rounded once, to nearest, ties to even.

    torch rounds float64 to float32 on the way to 16 bits, so twice. Rounding to odd first makes
    the second rounding right: Boldo and Melquiond 2008, https://doi.org/10.1109/TC.2007.70819.
    """
    if value.dtype == torch.float64 and target.element_size() == 2:
        narrow = value.float()
        wide = narrow.double()
        bits = narrow.view(torch.int32)
        bits -= (wide.abs() > value.abs()).int()
        bits |= (wide != value).int()
        value = narrow
    target.copy_(value)


class Evaluator:
    """An expression, ready to be evaluated block by block.

    The result of a call is a leaf's view, one of the buffers, or fresh memory: use it before the
    next. In float32 numerics it is in the type that sums are computed in (``leaves.sum_dtype``) or
    a leaf's own; in mergekit numerics it is in the dtype that the expression states.

    Args:
        expression: What is evaluated; what must be held whole is a leaf.
        leaves: What it starts from.
        numerics: How values are rounded, and by which kernels methods are computed.
        buffers: Buffers to compute in; evaluators of one thread share them.
        squares: Numbers of the task vectors whose sums of squares are wanted; taken out as they
            are found, so that one that stands twice counts once.
        products: Holds the factors of low-rank products; needed where the expression has some.
        maps: What each call that is computed in passes does to elements.
    """

    def __init__(
        self,
        expression: ex.Expression,
        leaves: Leaves,
        numerics: Numerics,
        buffers: BlockBuffers,
        squares: dict[ex.Delta, int] | None = None,
        products: Products | None = None,
        maps: Callable[[ex.Call], Map] | None = None,
    ) -> None:
        self.leaves = leaves
        self._numerics = numerics
        self._mergekit = not numerics.rounds_once
        self._buffers = buffers
        self._views = {leaf: i for i, leaf in enumerate((*leaves.files, *leaves.held))}
        self._squares = {} if squares is None else squares
        self._products, self._maps = products, maps
        self._table: str | None = None
        self.products: list[Product | StackedProduct] = []
        self.run = self._compile(expression, 0)

    def _compile(self, node: ex.Expression, k: int) -> Operation:
        """Return the operation of a node; under rows, of those of its rows that are wanted.

        Its result is in buffer k of some dtype unless it is a view or fresh, and it may use
        every buffer from k on.
        """
        leaf = node if self._table is None else leaf_rows(node, self._table)
        if leaf in self._views:
            return self._leaf(node, self._views[leaf], k)
        match node:
            case ex.Delta():
                return self._delta(node, k)
            case ex.LowRank():
                return self._low_rank(node, k)
            case ex.Linear():
                return self._linear(node, k)
            case ex.Zero():
                buffer = self._buffer("F32", k)
                return lambda block: buffer(block.count).zero_()
            case ex.Cast():
                return self._cast(self._compile(node.operand, k), node.dtype, k)
            case ex.Call():
                return self._call(node, k)
            case ex.Choice():
                return self._choice(node, k)
            case ex.Rows():
                return self._rows(node, k)
        raise TypeError(f"cannot be evaluated: {node!r}")

    def _buffer(self, dtype: str, k: int) -> Callable[[int], torch.Tensor]:
        full = self._buffers.get(dtype, k)
        return lambda count: full if count == len(full) else full[:count]

    def _widen(self, operation: Operation, dtype: str, k: int) -> Operation:
        """Return the operation with its result in a wider dtype, in buffer k if it was not."""
        buffer, wanted = self._buffer(dtype, k), torch_dtype(dtype)

        def widen(block: Block) -> torch.Tensor:
            value = operation(block)
            return value if value.dtype == wanted else buffer(block.count).copy_(value)

        return widen

    def _cast(self, operation: Operation, dtype: str, k: int) -> Operation:
        buffer, wanted = self._buffer(dtype, k), torch_dtype(dtype)
        once = not self._mergekit

        def cast(block: Block) -> torch.Tensor:
            value = operation(block)
            if value.dtype == wanted:
                return value
            target = buffer(block.count)
            if once:
                round_into(target, value)
            else:
                target.copy_(value)
            return target

        return cast

    def _leaf(self, node: ex.Expression, index: int, k: int) -> Operation:
        def view(block: Block) -> torch.Tensor:
            return block.views[index]

        number = self._squares.pop(node, None)
        if number is None:
            return view
        wide = self._widen(view, sum_dtype(node), k)

        def measured(block: Block) -> torch.Tensor:
            value = wide(block)
            block.squares.append((number, torch.dot(value, value), None))
            return value

        return view if self._mergekit else measured

    def _delta(self, node: ex.Delta, k: int) -> Operation:
        dtype = sum_dtype(node)
        left = self._widen(self._compile(node.finetuned, k), dtype, k)
        right = self._widen(self._compile(node.base, k + 1), dtype, k + 1)
        result, rounded = self._buffer(dtype, k), self._buffer(node.dtype, k)
        number = self._squares.pop(node, None)
        exact, stated = node.dtype == dtype, self._mergekit

        def delta(block: Block) -> torch.Tensor:
            finetuned, base = left(block), right(block)
            value = torch.sub(finetuned, base, out=result(block.count))
            if not exact:
                narrow = rounded(block.count)
                round_into(narrow, value)
                value.copy_(narrow)
            if number is not None:
                squares = torch.dot(value, value), torch.dot(base, base)
                block.squares.append((number, *squares))
            return narrow if stated and not exact else value

        return delta

    def _low_rank(self, node: ex.LowRank, k: int) -> Operation:
        product = self._products.get(node)
        scratch = self._buffers.scratch(node.dtype, k)
        self.products.append(product)

        def low_rank(block: Block) -> torch.Tensor:
            return product.block(block.first, block.count, scratch)

        return _by_run(low_rank)

    def _linear(self, node: ex.Linear, k: int) -> Operation:
        dtype = sum_dtype(node)
        result = self._buffer(dtype, k)
        terms = []
        for number, (coefficient, operand) in enumerate(node.terms):
            place = k if number == 0 else k + 1
            terms.append(self._scaled(coefficient, operand, dtype, place))
        first, *others = terms

        def linear(block: Block) -> torch.Tensor:
            value = first(block)
            for term in others:
                value = torch.add(value, term(block), out=result(block.count))
            return value

        return linear

    def _scaled(self, coefficient: float, operand: ex.Expression, dtype: str, k: int) -> Operation:
        operation = self._widen(self._compile(operand, k), dtype, k)
        buffer = self._buffer(dtype, k)
        if coefficient == 1.0:
            return operation

        def scaled(block: Block) -> torch.Tensor:
            return torch.mul(operation(block), coefficient, out=buffer(block.count))

        return scaled

    def _choice(self, node: ex.Choice, k: int) -> Operation:
        dtype = stated_dtype(node) if self._mergekit else sum_dtype(node)
        result, width = self._buffer(dtype, k), node.width
        inputs = [
            self._widen(self._compile(one, k + 1 + i), dtype, k + 1 + i)
            for i, one in enumerate(node.operands)
        ]

        def choice(block: Block) -> torch.Tensor:
            values = [one(block) for one in inputs]
            chosen = result(block.count)
            for first, count, members in choice_ranges(node.table, width, block.first, block.count):
                target = chosen[first : first + count]
                if len(members) == 1:
                    target.copy_(values[members[0]][first : first + count])
                    continue
                target.zero_()
                for member in members:
                    target.add_(values[member][first : first + count])
                if members:
                    target.div_(len(members))
            return chosen

        return _by_run(choice)

    def _rows(self, node: ex.Rows, k: int) -> Operation:
        """Return what makes rows where they are wanted, from the same rows of what is read."""
        dtype = stated_dtype(node) if self._mergekit else sum_dtype(node)
        result, width = self._buffer(dtype, k), math.prod(node.shape[1:])
        outer = self._table
        self._table = node.table if outer is None else take(node.table, outer)
        operand = self._compile(node.operand, k + 1)
        self._table = outer

        def rows(block: Block) -> torch.Tensor:
            made = result(block.count)
            found = list(row_ranges(node.table, width, block.first, block.count))
            taken = [
                (slice(at, at + n), (source, n)) for at, n, source in found if source is not None
            ]
            if len(taken) < len(found):
                made.zero_()
            if not taken:
                return made
            places, runs = zip(*taken, strict=True)
            views = block.views
            if len(taken) < len(found):
                views = [torch.cat([view[place] for place in places]) for view in views]
            count = sum(n for _, n in runs)
            value = operand(Block(views, runs[0][0], count, block.squares, runs))
            for place, part in zip(places, value.split([n for _, n in runs]), strict=True):
                made[place] = part
            return made

        return _by_run(rows)

    def _call(self, node: ex.Call, k: int) -> Operation:
        apply = self._applied(node)
        inputs = [self._compile(operand, k + i) for i, operand in enumerate(node.inputs)]
        if not self._mergekit:
            dtype = sum_dtype(node)
            inputs = [self._widen(one, dtype, k + i) for i, one in enumerate(inputs)]

        def call(block: Block) -> torch.Tensor:
            tensors = [one(block) for one in inputs]
            result = apply(tensors, block)
            passed = any(result.data_ptr() == tensor.data_ptr() for tensor in tensors)
            return result.clone() if passed else result  # not in a buffer that others use

        return call

    def _applied(self, node: ex.Call) -> Callable[[Sequence[torch.Tensor], Block], torch.Tensor]:
        """Return what makes a block of a call's result from its inputs'."""
        if in_passes(node, self._numerics):
            make, shape = self._maps(node), node.inputs[0].shape
            if self._buffers.device.type == "cpu":
                made = MadeBlocks(make, shape, narrow=self._mergekit)
                return lambda tensors, block: made(tensors, block.first, block.runs)
            return lambda tensors, block: make(
                TorchElements(tensors, shape, block.first, block.runs)
            )
        kernel, _ = kernel_of(node.method, self._numerics)

        def apply(tensors: Sequence[torch.Tensor], block: Block) -> torch.Tensor:
            operation = _by_run(lambda part: kernel(group_of(node, part.views, part.first)))
            return operation(replace(block, views=tensors))

        return apply
