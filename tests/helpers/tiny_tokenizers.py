"""Tiny tokenizers, made with the tokenizers library, and models whose embeddings follow them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from helpers.models import LLAMA, llama_shapes, random_tensors, save_model

#: Text that tokenizers of all these words can write.
WORDS = ("the", "cat", "dog", "sat", "ran", "big", "red")


def bpe(words: Sequence[str], added: Mapping[str, bool] = {}) -> Tokenizer:
    """Return a byte-level BPE tokenizer whose merges spell the words.

    Args:
        words: They, and what they are spelt from, are tokens.
        added: Further tokens, and whether each is special.
    """
    vocab = {c: i for i, c in enumerate(sorted({*"Ġ", *"".join(WORDS)}))}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append(pair)
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    for token, special in added.items():
        made.add_tokens([AddedToken(token, special=special, normalized=not special)])
    return made


def save_tokenizer(folder: Path, made: Tokenizer, **settings: object) -> None:
    """Write a tokenizer's files beside a model."""
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def tokenized(
    folder: Path,
    seed: int,
    words: Sequence[str],
    added: Mapping[str, bool] = {},
    *,
    dtype: torch.dtype = torch.float16,
    layers: int = 2,
    spare: int = 0,
    tied: bool = False,
    width: int = 16,
    **settings: object,
) -> Path:
    """Write a tiny Llama with a tokenizer of its own and return its folder.

    Args:
        folder: Where.
        seed: Of the weights.
        words, added: As ``bpe`` takes them.
        dtype: Of the weights.
        layers: Their number.
        spare: Rows of the embeddings beyond the tokens; below 0, tokens without a row.
        tied: Whether the output embedding is the input's.
        width: Of the embeddings.
        settings: Of tokenizer_config.json.
    """
    made = bpe(words, added)
    rows = made.get_vocab_size() + spare
    tensors = random_tensors(llama_shapes(layers, width, vocab=rows, kv=width // 2), seed, dtype)
    if tied:
        del tensors["lm_head.weight"]
    config = LLAMA | {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    save_model(folder, tensors, config=config)
    save_tokenizer(folder, made, **settings)
    return folder
