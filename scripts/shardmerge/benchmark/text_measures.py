"""What is measured of a model while it reads a text: Gram matrices and Fisher information.

Tensors are measured in groups, so that what is added up fits into memory; the text is read once
for each group. The size of a group decides no bits. Bits depend on the processor and on torch, as
all that a model computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path, read_text
from shardmerge.base.safetensors import write_header
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


@dataclass(frozen=True)
class TextMeasure:
    """Something that is measured.

    Args:
        method: The merge method that it is for.
        decline: The parameter that leaves tensors out.
        shape: Of the sum for a tensor of a shape.
        measure: (model, targets, shapes of the sums, blocks) -> sums.
        find: What of a model is a target: (model, name, shape of the tensor) -> it, or None.
    """

    method: str
    decline: str
    shape: Callable[[Sequence[int]], tuple[int, ...]]
    measure: Callable[[Any, Sequence[Any], Sequence[tuple[int, ...]], Iterator[Any]], Sums]
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
        most: Bytes of sums that are held at a time.

    Raises:
        UserError: If transformers is missing or cannot load the model, the text is too short, a
            tensor cannot be measured, or a value is not finite.
    """
    found = TEXT_MEASURES[kind]
    check_transformers(f"`merge_method: {found.method}`", "")
    import torch

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
    with atomic_path(output) as part, open(part, "wb") as file:
        file.write(write_header(rows, {"format": "pt"}))
        for number, run in enumerate(runs):

            def read(done: int = number * len(blocks)) -> Iterator[Any]:
                for i, block in enumerate(blocks):
                    yield torch.tensor([block], device=model.device)
                    progress(done + i + 1, len(runs) * len(blocks))

            with explained("cannot read the text", folder):
                sums = found.measure(model, targets[run], shapes[run], read())
            for name, value in zip(names[run], sums, strict=True):
                file.write(_bytes(value, name, folder))
            del sums
        confirm()


def _bytes(value: torch.Tensor, name: str, folder: Path) -> memoryview:
    if not bool(value.isfinite().all()):
        raise UserError(
            f"what is measured of tensor {name!r} is infinite or NaN",
            str(folder),
            "Write `model_dtype: float32`, or see whether the model computes finite values at all.",
        )
    return memoryview(value.float().contiguous().cpu().numpy()).cast("B")


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


def _grams(
    model: Any, layers: Sequence[Any], shapes: Sequence[tuple[int, ...]], blocks: Iterator[Any]
) -> Sums:
    """Return the Gram matrices of layers' inputs, by the number of tokens."""
    import torch

    sums = [torch.zeros(shape, dtype=torch.float32, device=model.device) for shape in shapes]
    tokens = 0

    def hook(total: torch.Tensor) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(_: Any, given: tuple[Any, ...]) -> None:
            rows = given[0].reshape(-1, total.shape[0]).float()
            total.addmm_(rows.t(), rows)

        return add

    with ExitStack() as stack, torch.inference_mode():
        for layer, total in zip(layers, sums, strict=True):
            stack.callback(layer.register_forward_pre_hook(hook(total)).remove)
        for block in blocks:
            model(input_ids=block, use_cache=False)
            tokens += block.numel()
    return [total.div_(tokens) for total in sums]


def _fisher(
    model: Any, parameters: Sequence[Any], shapes: Sequence[tuple[int, ...]], blocks: Iterator[Any]
) -> Sums:
    """Return the mean over blocks of squared derivatives of the blocks' log-likelihoods."""
    import torch

    sums = [torch.zeros(shape, dtype=torch.float32, device=model.device) for shape in shapes]
    places: dict[int, list[int]] = {}  # tied tensors are one parameter
    for number, parameter in enumerate(parameters):
        places.setdefault(id(parameter), []).append(number)
    count = 0

    def hook(numbers: list[int]) -> Callable[[Any], None]:
        def add(parameter: Any) -> None:
            slope = parameter.grad.float()
            for number in numbers:
                sums[number].addcmul_(slope, slope)
            parameter.grad = None

        return add

    with ExitStack() as stack:
        for parameter in {id(one): one for one in parameters}.values():
            parameter.requires_grad_(True)
            stack.callback(parameter.requires_grad_, False)
            handle = parameter.register_post_accumulate_grad_hook(hook(places[id(parameter)]))
            stack.callback(handle.remove)
        for block in blocks:
            logits = model(input_ids=block, use_cache=False).logits[0, :-1].float()
            known = logits.log_softmax(-1).gather(1, block[0, 1:, None])
            known.sum().backward()
            count += 1
    return [total.div_(count) for total in sums]


TEXT_MEASURES = {
    "grams": TextMeasure("regmean", "grams", lambda shape: (shape[1], shape[1]), _grams, _linear),
    "fisher": TextMeasure("fisher", "information", tuple, _fisher, _parameter),
}
