"""What is measured of a model while it reads a text: in groups, of names, and what is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_tokenizers import WORDS, tokenized
from shardmerge.base.errors import UserError
from shardmerge.base.unfinished import Keeping
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


@pytest.mark.parametrize("kind", ["grams", "fisher"])
@pytest.mark.parametrize(("most", "stop"), [(1 << 30, 1), (1 << 30, 3), (1, 3), (1, 4), (1, 7)])
def test_a_killed_job_reads_the_rest_alone(
    folder: Path, tmp_path: Path, kind: str, most: int, stop: int
) -> None:
    """Two tensors and four blocks: eight steps if tensors are groups of their own, else four."""
    tensors = [[_LAYER, [16, 24]], ["model.layers.1.self_attn.k_proj.weight", [8, 16]]]
    total = 8 if most == 1 else 4
    told = {**_OPTIONS, "tensors": tensors}
    files = folder / "model", folder / "text.txt"
    measure_text(kind, *files, told, tmp_path / "whole", most=most)
    output = tmp_path / "made"
    how: dict[str, Any] = {"most": most, "keeping": Keeping("job", least=0.0, share=1.0)}

    def kill(done: int, total: int) -> None:
        if done > stop:  # what came after was not kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_text(kind, *files, told, output, **how, progress=kill)
    again: list[tuple[int, int]] = []
    measure_text(kind, *files, told, output, **how, progress=lambda *step: again.append(step))
    assert again == [(step, total) for step in range(stop + 1, total + 1)]
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "whole"]


_SCRIPT = """
import json, pathlib, sys
from shardmerge.base.unfinished import Keeping
from shardmerge.benchmark.text_measures import measure_text
kind, model, text, output, told, wait = json.load(sys.stdin)
def tell(done, total):
    print(done, flush=True)
    if done == wait:
        sys.stdin.read(1), __import__("time").sleep(600)
measure_text(
    kind, pathlib.Path(model), pathlib.Path(text), told, pathlib.Path(output),
    keeping=Keeping("job", least=0.0, share=1.0), progress=tell,
)
"""


@pytest.mark.slow
def test_a_job_that_is_really_killed(folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the second tensor, then while the third is read."""
    names = [f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (0, 1) for name in "ud"]
    names = [name.replace("u_", "up_").replace("d_", "down_") for name in names]
    shapes = {"up": [24, 16], "down": [16, 24]}
    told = {**_OPTIONS, "tensors": [[n, shapes[n.split(".")[4][:-5]]] for n in names]}
    measure_text("grams", folder / "model", folder / "text.txt", told, tmp_path / "whole")
    given = ["grams", str(folder / "model"), str(folder / "text.txt"), str(tmp_path / "made"), told]

    def run(wait: int) -> list[int]:
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
        process.stdin.write(json.dumps([*given, wait]))
        process.stdin.close()
        done = []
        for line in process.stdout:
            done.append(int(line))
            if done[-1] == wait:
                process.kill()
        assert process.wait() == (-signal.SIGKILL if wait else 0)
        return done

    assert run(2) == [1, 2]
    assert run(3) == [2, 3]
    assert run(0) == [3, 4]
    assert (tmp_path / "made").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "whole"]


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
