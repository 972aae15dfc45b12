"""Passes by torch: the same bits as native code's, on any device, for float64 too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from shardmerge.methods.contract import BLOCK, BeginPasses, Group
from shardmerge.methods.kernels.blocks import row_sums, spans
from shardmerge.methods.kernels.brackets import (
    Bracket,
    KeyPasses,
    find_bands,
    find_keys,
    in_parts,
)
from shardmerge.methods.kernels.keys import RandomStream
from shardmerge.methods.kernels.masks import (
    Below,
    ElementSpan,
    FoundMask,
    chance_masks,
    in_one_array,
    mask_of,
    mask_of_runs,
)
from shardmerge.methods.kernels.mersenne import Mersenne
from shardmerge.methods.kernels.places import PickedValues
from shardmerge.methods.kernels.plain import result_of
from shardmerge.methods.kernels.ranks import RowMasks, choice_by, ranks_along
from shardmerge.methods.kernels.rng import uniform
from shardmerge.methods.kernels.selection import key_values, sort_keys
from shardmerge.methods.kernels.torch_choice import torch_mask
from shardmerge.methods.kernels.torch_order import torch_sums
from shardmerge.methods.passes import (
    BIAS,
    MANTISSA,
    ROOT_OF_HALF,
    SINGLE_BIAS,
    SINGLE_MANTISSA,
    Axis,
    Bands,
    Chances,
    Counts,
    KeyBand,
    Map,
    Masks,
    Maxima,
    Order,
    OrderStatistics,
    Ranks,
    RowChances,
    RowStatistics,
    RowSteps,
    Sums,
    Together,
    TorchChoice,
    TorchDraws,
    TorchRows,
    TorchSums,
    Wanted,
    along_first,
    end_of,
    in_turn,
    rows_first,
    vectors,
)

_CODES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
#: Elements at most whose ranks are found together: they are remembered in host memory.
_SORTED = 1 << 20
#: Elements that an accelerator makes at a time: what counts there is the number of calls.
_ON_CARD = 1 << 22
#: Returns consecutive elements of each input, in the type that is computed in: (first, count).
ReadInputs = Callable[[int, int], Sequence[torch.Tensor]]
#: Finds the mask of the elements of a tensor on the CPU that torch's order puts at some ranks.
ChooseElements = Callable[[torch.Tensor, Ranks, Order], Masks]


@dataclass(frozen=True)
class TorchElements:
    """Elements of a call's inputs.

    Args:
        tensors: One for each input, one-dimensional, of one type.
        shape: Of the tensor that they are elements of.
        first: Index of the first, where all follow each other.
        runs: Else which they are: (first, number) of those that do.
    """

    tensors: Sequence[torch.Tensor]
    shape: Sequence[int]
    first: int = 0
    runs: Sequence[tuple[int, int]] = ()

    @cached_property
    def _places(self) -> torch.Tensor:
        """Index of each."""
        like = self.tensors[0]
        runs = self.runs or [(self.first, len(like))]
        parts = [torch.arange(a, a + count, device=like.device) for a, count in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _of_runs(self, function: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
        like = self.tensors[0]
        if not self.runs:
            return function(self.first, len(like)).to(like.device)
        return torch.cat([function(*run) for run in self.runs]).to(like.device)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.tensors[index]

    def full(self, number: float) -> torch.Tensor:
        return torch.full_like(self.tensors[0], number)

    def quotient(self, value: torch.Tensor, number: float) -> torch.Tensor:
        return quotient(value, number)

    def where(self, mask: torch.Tensor, yes: Any, no: Any) -> torch.Tensor:
        return torch.where(mask, yes, no)

    def number(self, mask: torch.Tensor) -> torch.Tensor:
        return mask.to(self.tensors[0].dtype)

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.tensors[0].dtype)

    def single(self, value: torch.Tensor) -> torch.Tensor:
        return value.float()

    def inside(self, value: torch.Tensor, band: KeyBand) -> torch.Tensor:
        keys = sort_keys(value)
        places = self._places
        mask = (keys > band.low) & (keys < band.high)
        for key, (begin, end) in ((band.low, band.at_low), (band.high, band.at_high)):
            mask |= (keys == key) & (places >= begin) & (places < end)
        return mask & (band.low <= band.high)

    def chosen(self, mask: Masks) -> torch.Tensor:
        if isinstance(mask, FoundMask) and self.runs:
            found = torch.from_numpy(mask_of_runs(mask, self.runs))
            return found.to(self.tensors[0].device)
        return self._of_runs(lambda *run: self._mask(mask, *run))

    def _mask(self, mask: Masks, first: int, count: int) -> torch.Tensor:
        if isinstance(mask, Below) and isinstance(mask.numbers, RandomStream):
            drawn = uniform(mask.numbers.key, first, count, self.tensors[0].device)
            return drawn < mask.bound * 2.0**-32
        return torch.from_numpy(mask_of(mask(first, count), count))

    def exponent(self, value: torch.Tensor) -> torch.Tensor:
        return _exponents(value).double()

    def mantissa(self, value: torch.Tensor) -> torch.Tensor:
        bits = value.view(torch.int64) - (_exponents(value) << MANTISSA)
        return bits.view(torch.float64)

    def power_of_two(self, value: torch.Tensor) -> torch.Tensor:
        if value.dtype == torch.float32:
            return ((value.view(torch.int32) + SINGLE_BIAS) << SINGLE_MANTISSA).view(torch.float32)
        return ((value.view(torch.int64) + BIAS) << MANTISSA).view(torch.float64)

    def along(self, values: np.ndarray, axis: Axis, *, wide: bool = False) -> torch.Tensor:
        like = self.tensors[0]
        kind = torch.float64 if wide else like.dtype
        numbers = torch.from_numpy(values).to(like.device, kind)
        count, length = vectors(self.shape, axis)
        places = self._places
        return numbers[places % count if along_first(self.shape, axis) else places // length]


def quotient(value: torch.Tensor, number: float) -> torch.Tensor:
    """Return a tensor divided by a number as a CPU does it, whatever the device.

    On a card torch makes a product with the reciprocal of a number, but not of a tensor.
    """
    if value.device.type == "cpu":
        return value / number
    wide = torch.promote_types(value.dtype, torch.float32)
    divisor = torch.full((), number, dtype=wide, device=value.device)
    return (value.to(wide) / divisor).to(value.dtype)


def _exponents(value: torch.Tensor) -> torch.Tensor:
    """Return the powers of 2 that bring numbers near 1, as integers."""
    return (value.view(torch.int64) - ROOT_OF_HALF) >> MANTISSA


def execute(begin: BeginPasses, group: Group) -> torch.Tensor:
    """Return what a method's passes make of whole tensors, or of a block if they reduce nothing."""
    tensors = [tensor.reshape(-1) for tensor in group.tensors]
    group = replace(group, shape=group.shape or tuple(group.tensors[0].shape))
    out = torch.empty_like(tensors[0])

    def read(first: int, count: int) -> list[torch.Tensor]:
        return [tensor[first : first + count] for tensor in tensors]

    if out.numel():
        make = end_of(begin(group), partial(answered, shape=group.shape, read=read))
        for span in spans(out.numel()):
            parts = read(span.start, span.stop - span.start)
            out[span] = make(TorchElements(parts, group.shape, group.offset + span.start))
    return out.view(group.tensors[0].shape)


def make_whole(function: Map, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Make each element of a tensor by a function, as ``MakeWhole`` says.

    It works on blocks that stay in a processor's cache, as do what their operations allocate.
    """
    step = BLOCK // 4 if out.device.type == "cpu" else _ON_CARD
    shape, flat = tuple(out.shape), [tensor.reshape(-1) for tensor in tensors]
    target = out.view(-1)
    for span in spans(out.numel(), step):
        x = TorchElements([tensor[span] for tensor in flat], shape, span.start)
        target[span] = function(x)


def answered(
    wanted: Wanted,
    shape: Sequence[int],
    read: ReadInputs,
    step: int = BLOCK,
    choose: ChooseElements = torch_mask,
) -> Any:
    """Return what a pass over some elements' tensors wants to know.

    Args:
        wanted: What it asks for.
        shape: Of the tensors, which have elements.
        read: Reads elements.
        step: Elements that are read at a time, a multiple of BLOCK; it changes no bit.
        choose: Finds what ``torch_mask`` does.
    """
    match wanted:
        case Sums(function, axis):
            return _sums(function, axis, shape, read, step)
        case Counts(function):
            return _counts(function, shape, read, step)
        case Bands(function, ranks):
            return _bands(function, ranks, shape, read, step)
        case Maxima(function, axis):
            return _maxima(function, axis, shape, read, step)
        case RowSteps():
            found = end_of(in_turn(wanted), partial(answered, shape=shape, read=read, step=step))
            return result_of(wanted, found)
        case RowStatistics():
            return end_of(rows_first(wanted), partial(answered, shape=shape, read=read, step=step))
        case OrderStatistics(places=places) if places:
            return _at_places(wanted, shape, read, step)
        case TorchRows(function):
            return _torch_rows(function, shape, read)
        case OrderStatistics(function, ranks):
            keys = _order_statistics(function, ranks, shape, read, step)
            return key_values(keys, read(0, 1)[0].dtype)
        case Chances():
            return chance_masks(wanted)
        case RowChances():
            return _row_masks(wanted, shape, read, step)
        case TorchChoice():
            return _torch_choice(wanted, shape, read, step, choose)
        case TorchSums():
            return _torch_sums(wanted, shape, read)
        case Together(several):
            return [answered(one, shape, read, step) for one in several]
        case TorchDraws(seed):
            return Mersenne(seed)
    raise TypeError(f"not known to passes: {wanted!r}")


def _sums(
    function: Callable, axis: Axis, shape: Sequence[int], read: ReadInputs, step: int
) -> np.ndarray:
    rows, columns = vectors(shape, axis)
    strided = along_first(shape, axis)

    def tiles(row: slice, column: slice) -> Iterator[torch.Tensor]:
        size, length = row.stop - row.start, column.stop - column.start
        first = row.start * columns + column.start
        if strided:
            inside = range(*column.indices(columns))
            lines = [read(line * rows + row.start, size) for line in inside]
            tensors = [torch.stack(each).t().reshape(-1) for each in zip(*lines, strict=True)]
        else:
            tensors = list(read(first, size * length))
        values = function(TorchElements(tensors, shape, first))
        return (value.clone().view(size, -1) for value in values)

    return row_sums(tiles, rows, columns, step).double().numpy()


def _torch_sums(wanted: TorchSums, shape: Sequence[int], read: ReadInputs) -> np.ndarray:
    def values(first: int, count: int) -> Sequence[torch.Tensor]:
        return wanted.function(TorchElements(read(first, count), shape, first))

    def feed(sums: Sequence[Any], first: int, count: int) -> None:
        for one, value in zip(sums, values(first, count), strict=True):
            one.add(value.float().cpu().numpy())

    codes = [_CODES[value.dtype] for value in values(0, 1)]
    return torch_sums(feed, shape, codes, wanted)


def _row_masks(
    wanted: RowChances, shape: Sequence[int], read: ReadInputs, step: int
) -> list[Masks]:
    def some(first: int, count: int) -> list[np.ndarray]:
        found = wanted.function(TorchElements(read(first, count), shape, first))
        # numpy has no bfloat16
        return [(one.float() if one.itemsize == 2 else one).cpu().numpy() for one in found]

    def values(spans: Sequence[ElementSpan]) -> list[np.ndarray]:
        return [in_one_array(one) for one in zip(*(some(*span) for span in spans), strict=True)]

    made = wanted.function(TorchElements(read(0, 1), shape, 0))
    ranks = ranks_along
    if wanted.by_torch:
        ranks = partial(torch_ranks, dtype=made[0].dtype)
    elif made[0].device.type != "cpu":
        ranks = partial(_stable_ranks, device=made[0].device)
    choose = [choice_by(ranks, bounds) for bounds in wanted.bounds]
    return RowMasks(values, wanted, shape, choose, min(step, _SORTED)).masks()


def _stable_ranks(values: np.ndarray, device: torch.device) -> np.ndarray:
    """Return what ``ranks_along`` does, sorted by an accelerator."""
    keys = torch.from_numpy(values.view(f"i{values.itemsize}")).to(device)
    keys = keys & torch.iinfo(keys.dtype).max  # NaN may have a sign
    order = keys.argsort(dim=1, stable=True)
    steps = torch.arange(values.shape[1], device=device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, steps).int().cpu().numpy()


def torch_ranks(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return the ranks along the second dimension by torch's sort of values of a type."""
    order = torch.from_numpy(values).to(dtype).argsort(dim=1)
    steps = torch.arange(values.shape[1]).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, steps).numpy()


def _maxima(
    function: Callable, axis: Axis, shape: Sequence[int], read: ReadInputs, step: int
) -> np.ndarray:
    rows, columns = vectors(shape, axis)
    found = []
    for row in spans(rows, max(1, step // columns)):
        first, size = row.start * columns, row.stop - row.start
        best: list[torch.Tensor] = []
        for column in spans(columns, step):
            length = column.stop - column.start
            at = first + column.start
            values = function(TorchElements(read(at, size * length), shape, at))
            most = [value.view(size, -1).amax(dim=1).cpu() for value in values]
            best = [torch.maximum(*pair) for pair in zip(best, most, strict=True)] if best else most
        found.append(torch.stack(best))
    return torch.cat(found, dim=1).numpy()


def _bands(
    function: Callable, ranks: Sequence[Ranks], shape: Sequence[int], read: ReadInputs, step: int
) -> list[KeyBand]:
    _, count = vectors(shape, "all")
    bits = torch.finfo(read(0, 1)[0].dtype).bits

    def blocks() -> Iterator[tuple[int, list[torch.Tensor]]]:
        for span in spans(count, step):
            parts = read(span.start, span.stop - span.start)
            yield (
                span.start,
                [sort_keys(one) for one in function(TorchElements(parts, shape, span.start))],
            )

    def locate(k: int, key: int, number: int) -> int:
        return in_parts(
            (first + (keys[k] == key).nonzero()[:, 0] for first, keys in blocks()), number
        )

    counted = partial(_count_keys, lambda: (keys for _, keys in blocks()))
    return find_bands(ranks, KeyPasses(count, bits, counted), locate)[0]


def _at_places(
    wanted: OrderStatistics, shape: Sequence[int], read: ReadInputs, step: int
) -> list[float]:
    picked = PickedValues(wanted.places(), step, vectors(shape, "all")[1])
    for first, count in picked.spans():
        values = wanted.function(TorchElements(read(first, count), shape, first))
        picked.add(values.float().cpu().numpy(), first)
    return picked.ranked(wanted.ranks).tolist()


def _torch_rows(
    function: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    shape: Sequence[int],
    read: ReadInputs,
) -> np.ndarray:
    rows, length = vectors(shape, "last")
    found = []
    for row in spans(rows, max(1, BLOCK // length)):
        tensors = read(row.start * length, (row.stop - row.start) * length)
        made = function([one.reshape(-1, length).cpu() for one in tensors])
        found.append(made.double().reshape(-1).numpy())
    return np.concatenate(found)[None]


def _torch_choice(
    wanted: TorchChoice,
    shape: Sequence[int],
    read: ReadInputs,
    step: int,
    choose: ChooseElements,
) -> list[Masks]:
    """Return the masks of what torch puts at some ranks on a CPU, one value after the other."""
    _, count = vectors(shape, "all")
    masks: list[Masks] = []
    for k, ranks in enumerate(wanted.clipped(count)):
        dtype = torch.float32 if wanted.order == "sort" else read(0, 1)[0].dtype
        values = torch.empty(count, dtype=dtype)
        for span in spans(count, step):
            elements = TorchElements(read(span.start, span.stop - span.start), shape, span.start)
            values[span] = wanted.function(elements)[k].to(dtype).cpu()
        masks.append(choose(values, ranks, wanted.order))
    return masks


def _order_statistics(
    function: Callable, ranks: Sequence[int], shape: Sequence[int], read: ReadInputs, step: int
) -> list[int]:
    _, count = vectors(shape, "all")

    def keys() -> Iterator[list[torch.Tensor]]:
        for span in spans(count, step):
            parts = read(span.start, span.stop - span.start)
            yield [sort_keys(function(TorchElements(parts, shape, span.start)))]

    bits = torch.finfo(read(0, 1)[0].dtype).bits
    return find_keys(ranks, KeyPasses(count, bits, partial(_count_keys, keys)))


def _count_keys(
    keys: Callable[[], Iterator[list[torch.Tensor]]], brackets: Sequence[Bracket]
) -> list[tuple[int, np.ndarray]]:
    tables: list[torch.Tensor] = []
    for values in keys():
        tables = tables or [values[0].new_zeros(1 + one.parts) for one in brackets]
        for table, one in zip(tables, brackets, strict=True):
            parts = (values[one.value] - one.low) >> one.shift
            # those below count as one more part
            parts = parts[parts < one.parts].clamp_(min=-1) + 1
            table += torch.bincount(parts, minlength=1 + one.parts)
    rows = [table.cpu().numpy() for table in tables]
    return [(int(row[0]), row[1:]) for row in rows]


def _counts(function: Callable, shape: Sequence[int], read: ReadInputs, step: int) -> list[int]:
    _, count = vectors(shape, "all")
    found: list[int] = []
    for span in spans(count, step):
        masks = function(TorchElements(read(span.start, span.stop - span.start), shape, span.start))
        more = [int(mask.sum()) for mask in masks]
        found = [a + b for a, b in zip(found, more, strict=True)] if found else more
    return found
