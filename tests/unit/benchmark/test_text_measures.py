"""What is measured of a model while it reads a text: in groups, of names, and what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_tokenizers import WORDS, tokenized
from shardmerge.base.errors import UserError
from shardmerge.benchmark.reading import groups, text_blocks
from shardmerge.benchmark.text_measures import measure_text

_OPTIONS = {"tokens": 64, "context": 16, "model_dtype": "float32"}
_LAYER = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reading")
    tokenized(made / "model", 0, WORDS, {"<s>": True}, bos_token="<s>", tied=True)
    (made / "text.txt").write_text("the cat sat the dog ran " * 20)
    return made


def measured(folder: Path, kind: str, tensors: list[Any], **options: Any) -> dict[str, Any]:
    most = options.pop("most", 1 << 30)
    output = folder / f"{kind}.safetensors"
    told = {**_OPTIONS, **options, "tensors": tensors}
    measure_text(kind, folder / "model", folder / "text.txt", told, output, most=most)
    return load_file(output)


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([], 10, []),
        ([4, 4, 4], 8, [2, 1]),
        ([20, 1, 1], 8, [1, 2]),
        ([1, 20, 1], 8, [1, 1, 1]),
        ([8, 8], 8, [1, 1]),
    ],
)
def test_groups(sizes: list[int], most: int, expected: list[int]) -> None:
    found = groups(sizes, most)
    assert [part.stop - part.start for part in found] == expected
    assert [i for part in found for i in range(len(sizes))[part]] == list(range(len(sizes)))


@pytest.mark.parametrize("kind", ["grams", "fisher"])
def test_groups_change_no_bits(folder: Path, kind: str) -> None:
    tensors = [[_LAYER, [16, 24]], ["model.layers.1.self_attn.k_proj.weight", [8, 16]]]
    whole = measured(folder, kind, tensors)
    parts = measured(folder, kind, tensors, most=1)
    assert set(whole) == set(parts) == {name for name, _ in tensors}
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_grams_are_of_what_enters_the_layer(folder: Path) -> None:
    gram = measured(folder, "grams", [[_LAYER, [16, 24]]])[_LAYER]
    assert gram.shape == (24, 24)
    assert torch.allclose(gram, gram.t(), atol=1e-7)
    assert torch.linalg.eigvalsh(gram.double()).min() > -1e-6
    assert gram.diagonal().min() > 0


def test_tied_tensors_are_one_parameter(folder: Path) -> None:
    """The head of a model whose file has it beside the embedding that it is tied to."""
    rows = load_file(folder / "model" / "model.safetensors")["model.embed_tokens.weight"].shape
    names = ["lm_head.weight", "model.embed_tokens.weight"]
    found = measured(folder, "fisher", [[name, list(rows)] for name in names])
    assert torch.equal(*found.values())
    assert (found[names[0]] >= 0).all() and found[names[0]].any()


@pytest.mark.parametrize(
    ("kind", "tensor", "message"),
    [
        ("grams", ["model.norm.weight", [16, 16]], r"no linear layer of that name.*\n.*`grams: \["),
        ("grams", [_LAYER, [24, 16]], "no linear layer of that name and shape"),
        ("fisher", ["model.nothing", [16]], r"no parameter of that name.*\n.*`information: \["),
    ],
)
def test_what_cannot_be_measured_is_told(
    folder: Path, kind: str, tensor: list[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        measured(folder, kind, [tensor])


def test_a_short_text_is_told(folder: Path) -> None:
    with pytest.raises(UserError, match=r"too few for one block of 1000\n.*smaller `context`"):
        measured(folder, "grams", [[_LAYER, [16, 24]]], context=1000, tokens=5000)


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="the model cannot be loaded to read a text"):
        measured(tmp_path, "grams", [])
    assert not (tmp_path / "grams.safetensors").exists()


class Tokenizer:
    """A token for each character."""

    def __init__(self, first: int | None) -> None:
        self.bos_token_id = first

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(one) for one in text]}


@pytest.mark.parametrize(("first", "before"), [(None, []), (7, [7])])
def test_blocks_by_hand(first: int | None, before: list[int]) -> None:
    """Seven of ten tokens in blocks of three: the seventh is left."""
    found = text_blocks(Tokenizer(first), "abcdefghij", 7, 3, "text")
    assert found == [[*before, 97, 98, 99], [*before, 100, 101, 102]]
