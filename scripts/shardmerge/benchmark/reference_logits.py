"""What a model says of a text, kept whole in a file, so that others can be compared with it.

Logits are kept in the type that the model computes them in, so that nothing is rounded: a model
that is compared with itself diverges by exactly 0. Only one model is in memory at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path
from shardmerge.base.safetensors import read_header, write_header
from shardmerge.benchmark.probe_model import window_logits
from shardmerge.benchmark.probe_options import ProbeOptions
from shardmerge.benchmark.probe_text import ProbeText, vocabulary_of

if TYPE_CHECKING:
    import torch
    from lm_eval.api.model import LM

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True)
class KeptLogits:
    """A model's logits of a text.

    Args:
        name: What it is called in results.
        context, stride: How its windows lie.
        tokens: Of the text.
        vocabulary: Token of each number, None where there is none.
        rows: Gives logits of tokens by a slice, of shape (tokens, vocabulary).
    """

    name: str
    context: int
    stride: int
    tokens: tuple[int, ...]
    vocabulary: list[str | None]
    rows: Any


def keep_logits(model: LM, name: str, text: ProbeText, options: ProbeOptions, output: Path) -> None:
    """Write a model's logits of a text, window by window.

    Args:
        model: From ``loading.language_model``, with transformers.
        name: What it is called in results.
        text: As its tokenizer sees it.
        options: How windows lie.
        output: The file.
    """
    import torch

    context, stride = options.window(model.max_length)
    told = {"model": name, "context": str(context), "stride": str(stride)}
    begun = False
    with atomic_path(output) as part, open(part, "wb") as file:
        for _, logits in window_logits(model, text, context, stride):
            if not begun:
                file.write(_beginning(model, text, logits, told))
                begun = True
            file.write(logits.contiguous().view(torch.uint8).numpy().tobytes())


def _beginning(model: LM, text: ProbeText, logits: torch.Tensor, told: dict[str, str]) -> bytes:
    """Return a file's header, and all that comes before the logits."""
    import numpy

    code = _CODES[str(logits.dtype).removeprefix("torch.")]
    words = json.dumps(vocabulary_of(model.tokenizer, logits.shape[-1])).encode()
    words += b" " * (-len(words) % 8)
    tokens = numpy.array(text.tokens, dtype="<i8")
    header = write_header(
        [
            ("tokens", "I64", tokens.shape),
            ("vocabulary", "U8", (len(words),)),
            ("logits", code, (len(tokens), logits.shape[-1])),
        ],
        told,
    )
    return header + tokens.tobytes() + words


@contextmanager
def open_reference(path: str | os.PathLike[str]) -> Iterator[KeptLogits]:
    """Give what ``keep_logits`` wrote, read as it is needed.

    Raises:
        UserError: If it is something else.
    """
    from safetensors import safe_open

    header = read_header(path)
    wanted = {"tokens", "vocabulary", "logits"}
    if (
        header.tensors.keys() != wanted
        or not {"model", "context", "stride"} <= header.metadata.keys()
    ):
        raise UserError("has no logits of a text", str(path), "Delete it; it is made again.")
    with safe_open(path, "pt") as file:
        yield KeptLogits(
            header.metadata["model"],
            int(header.metadata["context"]),
            int(header.metadata["stride"]),
            tuple(file.get_tensor("tokens").tolist()),
            json.loads(bytes(file.get_tensor("vocabulary").numpy())),
            file.get_slice("logits"),
        )
