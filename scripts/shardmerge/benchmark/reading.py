"""Models that read: loaded by transformers with none of their own code, from safetensors alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError

#: Bytes of what is added up at a time; the text is read once for each group of tensors.
GROUP_BYTES = 4 << 30
_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def check_transformers(what: str, hint: str) -> None:
    """Make sure that transformers is there.

    Args:
        what: What needs it, for the error.
        hint: What the user may do but install it.

    Raises:
        UserError: If it is not.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        install = "`pip install -r requirements-bench.txt -r requirements-torch.txt`"
        raise UserError(
            f"{what} needs transformers: {error}", None, f"Install it: {install}{hint}."
        ) from None


def reading_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model's folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder.resolve()), **_SAFE)


def load_language_model(folder: Path, dtype: str, device: str) -> Any:
    """Return the causal language model of a folder, for reading.

    Args:
        folder: The model's.
        dtype: Name of the type in which it computes.
        device: torch's name of where it runs.
    """
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(folder.resolve()),
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        device_map=device,
        **_SAFE,
    ).eval()


@contextmanager
def explained(what: str, folder: Path) -> Iterator[None]:
    """Tell in a sentence why a model cannot do something.

    Args:
        what: What it cannot do.
        folder: The model's.

    Raises:
        UserError: For any error within.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the model {what}: {reason}", str(folder)) from error


def text_blocks(
    tokenizer: Any, text: str, tokens: int, context: int, where: str
) -> list[list[int]]:
    """Return blocks of a text's tokens, the token that begins a text before each if there is one.

    Args:
        tokenizer: The model's.
        text: It.
        tokens: How many are used at most.
        context: Tokens of the text in each block; what is left at the end is not used.
        where: The text, for messages.

    Raises:
        UserError: If there is not one whole block.
    """
    # a tokenizer need not see what cannot be used: a token has 64 characters at most, on average
    found = tokenizer(text[: 64 * tokens], add_special_tokens=False, verbose=False)["input_ids"]
    count = min(len(found), tokens) // context
    if not count:
        raise UserError(
            f"the text has {len(found)} tokens, of which {min(len(found), tokens)} are read, too "
            f"few for one block of {context}",
            where,
            "Name a longer text, or write a smaller `context` or a larger `tokens`.",
        )
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [[*first, *found[i * context : (i + 1) * context]] for i in range(count)]


def groups(sizes: Sequence[int], most: int = GROUP_BYTES) -> list[slice]:
    """Return runs of things of some sizes whose sum is no more than that, or that are single."""
    ends, room = [0], most
    for number, size in enumerate(sizes):
        if size > room and number > ends[-1]:
            ends.append(number)
            room = most
        room -= size
    return [slice(a, b) for a, b in itertools.pairwise([*ends, len(sizes)]) if b > a]


#: Told how many of how many steps are done.
ReportBlocks = Callable[[int, int], None]
