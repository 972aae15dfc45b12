"""The text that models are probed with: passages, tokens, and the windows that are read at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.base.files import read_text
from shardmerge.benchmark.options import EvalOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Characters of a passage. Standard errors draw passages, as neighbouring tokens are alike.
PASSAGE = 512


@dataclass(frozen=True)
class ProbeText:
    """A text as one tokenizer sees it.

    Args:
        passages: The text in pieces, the same for all tokenizers.
        tokens: Its tokens.
        places: Number of the passage that each token begins in.
        asked: Numbers of the passages that count, in rising order; all are read.
    """

    passages: tuple[str, ...]
    tokens: tuple[int, ...]
    places: tuple[int, ...]
    asked: tuple[int, ...]

    def asks(self, window: TextWindow) -> bool:
        """Return whether a window predicts a token that counts."""
        return not set(self.asked).isdisjoint(self.places[window.begin : window.end])


@dataclass(frozen=True)
class TextWindow:
    """Tokens that are predicted together.

    Args:
        start: Number of the first token that is read.
        begin, end: Of those that are predicted; all but the last are read too.
    """

    start: int
    begin: int
    end: int


def load_text(path: str, characters: int) -> str:
    """Return the beginning of a text file.

    Args:
        path: It.
        characters: How many, at most.

    Raises:
        UserError: If it is not there, no text, or empty.
    """
    text = read_text(path)[:characters]
    if not text.strip():
        raise UserError("has no text", path)
    return text


def tokenized(
    tokenizer: PreTrainedTokenizerBase, text: str, options: EvalOptions = EvalOptions()
) -> ProbeText:
    """Return a text with its tokens.

    Args:
        tokenizer: A fast one, which tells where tokens begin.
        text: It.
        options: Of which ``half`` and ``limit`` say which passages count.

    Raises:
        UserError: If it is none, or no passage counts.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "its tokenizer does not tell where tokens begin (it has no tokenizer.json)",
            hint="Leave `probes` out for this model.",
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = tuple(begin // PASSAGE for begin, _ in found["offset_mapping"])
    passages = tuple(text[i : i + PASSAGE] for i in range(0, len(text), PASSAGE))
    asked = tuple(options.asked(len(passages)))
    if not asked:
        raise UserError(
            f"the text has {len(passages)} passage of {PASSAGE} characters, too few for two halves",
            "configuration: benchmark.probes",
            "Name a longer text, or more `characters`.",
        )
    return ProbeText(passages, tuple(found["input_ids"]), places, asked)


def windows(tokens: int, context: int, stride: int) -> Iterator[TextWindow]:
    """Yield windows that predict each token once, after as many others as there is room for.

    Args:
        tokens: Of the text.
        context: Most that is read at once, one token in front of the text included.
        stride: Tokens that each window after the first predicts.
    """
    begin = 0
    while begin < tokens:
        end = min(tokens, begin + (stride if begin else context))
        yield TextWindow(max(0, end - context), begin, end)
        begin = end


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str | None]:
    """Return the token of each number below a size, None where there is none."""
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    return [known.get(number) for number in range(size)]


def vocabulary_difference(
    own: Sequence[str | None], other: Sequence[str | None], tokens: bool
) -> str | None:
    """Return in words why two models' distributions cannot be compared, None if they can.

    Args:
        own, other: Their vocabularies.
        tokens: Whether the text has the same tokens in both.
    """
    apart = sum(a != b for a, b in zip(own, other, strict=False))
    if apart:
        return f"their vocabularies differ in {apart:,} tokens"
    return None if tokens else "their tokenizers cut the text into other tokens"
