"""What is measured of a model while it reads a text: Gram matrices and Fisher information.

Tensors are measured in groups, so that what is added up fits into memory; the text is read once
for each group. The size of a group decides no bits. Bits depend on the processor and on torch, as
all that a model computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import read_text
from shardmerge.base.safetensors import write_header
from shardmerge.base.unfinished import Keeping, Unfinished
from shardmerge.benchmark.reading import (
    GROUP_BYTES,
    ReportBlocks,
    check_transformers,
    explained,
    groups,
    load_language_model,
    reading_tokenizer,
    text_blocks,
)

if TYPE_CHECKING:
    import torch

    #: Sums of a group of tensors, in its order.
    Sums = list[torch.Tensor]
    #: Lets a model read a block, [1, tokens], and adds to sums what is measured meanwhile.
    Read = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class TextMeasure:
    """Something that is measured.

    Args:
        method: The merge method that it is for.
        decline: The parameter that leaves tensors out.
        shape: Of the sum for a tensor of a shape.
        reading: (model, targets, sums) -> a context in which a block can be read.
        count: By what sums over blocks are divided.
        find: What of a model is a target: (model, name, shape of the tensor) -> it, or None.
    """

    method: str
    decline: str
    shape: Callable[[Sequence[int]], tuple[int, ...]]
    reading: Callable[[Any, Sequence[Any], Sums], AbstractContextManager[Read]]
    count: Callable[[Sequence[Sequence[int]]], int]
    find: Callable[[Any, str, Sequence[int]], Any]


def measure_text(
    kind: str,
    folder: Path,
    text: Path,
    options: Mapping[str, Any],
    output: Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    confirm: Callable[[], None] = lambda: None,
    progress: ReportBlocks = lambda done, total: None,
    keeping: Keeping = Keeping(),
    most: int = GROUP_BYTES,
) -> None:
    """Let a model read a text, and write a safetensors file with what is measured of its tensors.

    Args:
        kind: ``grams`` or ``fisher``.
        folder: The model's.
        text: File of text.
        options: ``tokens``, ``context`` and ``model_dtype`` as parameters of methods have them, and
            ``tensors``, names and shapes of those that are measured.
        output: The file: float32 tensors of the same names.
        device: torch's name of where the model runs.
        threads: Of torch.
        confirm: Called before the file is put in place.
        progress: Told how many blocks are read.
        keeping: How what is added up so far is kept, and what may take it over.
        most: Bytes of sums that are held at a time.

    Raises:
        UserError: If transformers is missing or cannot load the model, the text is too short, a
            tensor cannot be measured, or a value is not finite.
    """
    found = TEXT_MEASURES[kind]
    check_transformers(f"`merge_method: {found.method}`", "")
    import torch

    from shardmerge.engine.buffers import data_of

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    words = read_text(text)
    with explained("cannot be loaded to read a text", folder):
        tokenizer = reading_tokenizer(folder)
        model = load_language_model(folder, options["model_dtype"], device)
    blocks = text_blocks(tokenizer, words, options["tokens"], options["context"], str(text))
    model.requires_grad_(False)
    names = [name for name, _ in options["tensors"]]
    targets = [_found(found, model, name, shape, folder) for name, shape in options["tensors"]]
    shapes = [found.shape(shape) for _, shape in options["tensors"]]
    runs = groups([4 * math.prod(shape) for shape in shapes], most)
    rows = [(name, "F32", shape) for name, shape in zip(names, shapes, strict=True)]
    with Unfinished(output, keeping.also(most=most), confirm) as work:
        first, begun, sums = _kept(work, [shapes[run] for run in runs], len(blocks), model.device)
        if not (first or begun):
            work.restart()
            work.write(write_header(rows, {"format": "pt"}))
        for number, run in enumerate(runs[first:], first):
            sums = sums or [_zeros(shape, model.device) for shape in shapes[run]]

            def told(done: int, number: int = number, sums: Sums = sums) -> None:
                progress(number * len(blocks) + done, len(runs) * len(blocks))
                if done < len(blocks):
                    size = sum(total.nbytes for total in sums)
                    work.keep({"groups": number, "blocks": done}, map(data_of, sums), size)

            with (
                explained("cannot read the text", folder),
                found.reading(model, targets[run], sums) as read,
            ):
                for done, block in enumerate(blocks[begun:], begun + 1):
                    read(torch.tensor([block], device=model.device))
                    told(done)
            _write(work, names[run], sums, found.count(blocks), folder)
            begun, sums = 0, []
            if number + 1 < len(runs):
                work.keep({"groups": number + 1, "blocks": 0})


def _kept(
    work: Unfinished, shapes: Sequence[Sequence[tuple[int, ...]]], blocks: int, device: Any
) -> tuple[int, int, Sums]:
    """Return how many groups an earlier run has written, and of the next one blocks and sums."""
    import torch

    nothing: tuple[int, int, Sums] = 0, 0, []
    groups, begun = work.done.get("groups"), work.done.get("blocks")
    if type(groups) is not int or type(begun) is not int:
        return nothing
    if not (0 <= groups < len(shapes) and 0 <= begun < blocks):
        return nothing
    wanted = shapes[groups] if begun else []
    if [len(data) for data in work.arrays] != [4 * math.prod(shape) for shape in wanted]:
        return nothing
    sums = []
    for shape in wanted:  # copies, since bits may depend on where in memory a sum begins
        flat = torch.frombuffer(work.arrays.pop(0), dtype=torch.float32)
        sums.append(flat.view(shape).to(device, copy=True))
    return groups, begun, sums


def _write(work: Unfinished, names: Sequence[str], sums: Sums, count: int, folder: Path) -> None:
    """Write the means that sums are of."""
    from shardmerge.engine.buffers import data_of

    for name, total in zip(names, sums, strict=True):
        if not bool(total.div_(count).isfinite().all()):
            work.restart()
            raise _infinite(name, folder)
        work.write(data_of(total))


def _zeros(shape: Sequence[int], device: Any) -> torch.Tensor:
    import torch

    return torch.zeros(shape, dtype=torch.float32, device=device)


def _infinite(name: str, folder: Path) -> UserError:
    return UserError(
        f"what is measured of tensor {name!r} is infinite or NaN",
        str(folder),
        "Write `model_dtype: float32`, or see whether the model computes finite values at all.",
    )


def _found(kind: TextMeasure, model: Any, name: str, shape: Sequence[int], folder: Path) -> Any:
    """Return what of a model is measured for a tensor of its files."""
    prefix = getattr(model, "base_model_prefix", "")
    for own in (name, f"{prefix}.{name}"):
        if (found := kind.find(model, own, shape)) is not None:
            return found
    raise UserError(
        f"tensor {name!r} cannot be measured: transformers has no "
        f"{'linear layer' if kind.method == 'regmean' else 'parameter'} of that name and shape",
        str(folder),
        f"Leave it out: write `{kind.decline}: [{{filter: NAME, value: false}}, {{value: true}}]` "
        "under the document's `parameters`, with a part of its name.",
    )


def _linear(model: Any, name: str, shape: Sequence[int]) -> Any:
    """Return the linear layer whose weight has a name and a shape, or None."""
    import torch

    try:
        layer = model.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        return None
    right = isinstance(layer, torch.nn.Linear) and list(layer.weight.shape) == list(shape)
    return layer if right else None


def _parameter(model: Any, name: str, shape: Sequence[int]) -> Any:
    try:
        found = model.get_parameter(name)
    except AttributeError:
        return None
    return found if list(found.shape) == list(shape) else None


@contextmanager
def _reading_grams(model: Any, layers: Sequence[Any], sums: Sums) -> Iterator[Read]:
    """Add up the Gram matrices of layers' inputs."""
    import torch

    def hook(total: torch.Tensor) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(_: Any, given: tuple[Any, ...]) -> None:
            rows = given[0].reshape(-1, total.shape[0]).float()
            total.addmm_(rows.t(), rows)

        return add

    with ExitStack() as stack, torch.inference_mode():
        for layer, total in zip(layers, sums, strict=True):
            stack.callback(layer.register_forward_pre_hook(hook(total)).remove)
        yield lambda block: model(input_ids=block, use_cache=False)


def _tokens(blocks: Sequence[Sequence[int]]) -> int:
    return sum(map(len, blocks))


@contextmanager
def _reading_fisher(model: Any, parameters: Sequence[Any], sums: Sums) -> Iterator[Read]:
    """Add up squared derivatives of the blocks' log-likelihoods."""
    places: dict[int, list[int]] = {}  # tied tensors are one parameter
    for number, parameter in enumerate(parameters):
        places.setdefault(id(parameter), []).append(number)

    def hook(numbers: list[int]) -> Callable[[Any], None]:
        def add(parameter: Any) -> None:
            slope = parameter.grad.float()
            for number in numbers:
                sums[number].addcmul_(slope, slope)
            parameter.grad = None

        return add

    def read(block: Any) -> None:
        logits = model(input_ids=block, use_cache=False).logits[0, :-1].float()
        known = logits.log_softmax(-1).gather(1, block[0, 1:, None])
        known.sum().backward()

    with ExitStack() as stack:
        for parameter in {id(one): one for one in parameters}.values():
            parameter.requires_grad_(True)
            stack.callback(parameter.requires_grad_, False)
            handle = parameter.register_post_accumulate_grad_hook(hook(places[id(parameter)]))
            stack.callback(handle.remove)
        yield read


TEXT_MEASURES = {
    "grams": TextMeasure(
        method="regmean",
        decline="grams",
        shape=lambda shape: (shape[1], shape[1]),
        reading=_reading_grams,
        count=_tokens,
        find=_linear,
    ),
    "fisher": TextMeasure(
        method="fisher",
        decline="information",
        shape=tuple,
        reading=_reading_fisher,
        count=len,
        find=_parameter,
    ),
}
