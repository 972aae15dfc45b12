"""Models that are measured before they are merged, from the text to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_tokenizers import WORDS, tokenized
from helpers.workflow import Project
from shardmerge.base.files import load_json

pytestmark = pytest.mark.slow
_CONTEXT = 16
_READING = {"text": "a.txt", "context": _CONTEXT, "tokens": 100}
_MODELS: list[dict[str, Any]] = [
    {"model": "models/a"},
    {"model": "models/b", "parameters": {"text": "b.txt"}},
]
_DOCUMENTS: dict[str, dict[str, Any]] = {
    "reg": {"merge_method": "regmean", "models": _MODELS, "parameters": _READING},
    "fish": {
        "merge_method": "fisher",
        "models": _MODELS,
        "parameters": _READING | {"floor": 1e-6},
    },
    "gpt": {
        "merge_method": "metagpt",
        "base_model": "models/base",
        "models": [{"model": "models/a"}, {"model": "models/b"}],
    },
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("measured")
    for seed, name in enumerate(["base", "a", "b"]):
        tokenized(folder / "models" / name, seed, WORDS, {"<s>": True}, bos_token="<s>")
    (folder / "a.txt").write_text("the cat sat the dog ran big red " * 20)
    (folder / "b.txt").write_text("red big ran dog sat cat the " * 20)
    made = Project(folder)
    made.configure(sources={})
    made.write_documents(
        [{"name": name, "dtype": "float32", **rest} for name, rest in _DOCUMENTS.items()]
    )
    made.build("models", "report")
    return made


def _model(project: Project, folder: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in (project.folder / folder).glob("*.safetensors"):
        found |= load_file(path)
    return found


def _measured(project: Project) -> list[dict[str, torch.Tensor]]:
    return [load_file(path) for path in sorted((project.folder / "results/measured").iterdir())]


def _loaded(project: Project, name: str) -> tuple[Any, list[torch.Tensor]]:
    """Return a model and the blocks that it reads of its text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = project.folder / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (project.folder / f"{name}.txt").read_text()
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    first = tokenizer.bos_token_id
    parts = [tokens[i * _CONTEXT : (i + 1) * _CONTEXT] for i in range(100 // _CONTEXT)]
    return model, [torch.tensor([[first, *part]]) for part in parts]


def test_regmean_minimises_what_it_says(project: Project) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    grams, right = [], []
    for key in "ab":
        model, blocks = _loaded(project, key)
        layer, rows = model.get_submodule(name.removesuffix(".weight")), []
        layer.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(given[0][0]))
        with torch.inference_mode():
            for block in blocks:
                model(block)
        x = torch.cat(rows).double()
        gram = x.t() @ x / len(x)
        gram = 0.9 * gram + 0.1 * gram.diagonal().diag()
        grams.append(gram)
        right.append(gram @ layer.weight.double().t())
    wanted = torch.linalg.solve(sum(grams), sum(right)).t()
    found = _model(project, "results/reg/model")
    torch.testing.assert_close(found[name].double(), wanted, rtol=1e-4, atol=1e-6)
    a, b = (_model(project, f"models/{key}") for key in "ab")
    other = "model.embed_tokens.weight"
    torch.testing.assert_close(found[other], (a[other].float() + b[other].float()) / 2)


def test_fisher_is_of_squared_derivatives(project: Project) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    above = below = 0.0
    for key in "ab":
        model, blocks = _loaded(project, key)
        weight, total = model.get_parameter(name), 0.0
        for block in blocks:
            loss = torch.nn.functional.cross_entropy(
                model(block).logits[0, :-1], block[0, 1:], reduction="sum"
            )
            (slope,) = torch.autograd.grad(loss, weight)
            total = total + slope.double() ** 2
        fisher = (total / len(blocks)).clamp(min=1e-6)
        above, below = above + fisher * weight.detach().double(), below + fisher
    found = _model(project, "results/fish/model")[name].double()
    torch.testing.assert_close(found, above / below, rtol=1e-4, atol=1e-6)


def test_what_is_made_has_the_size_that_was_planned(project: Project) -> None:
    for job, path in project.made():
        assert sum(tensor.nbytes for tensor in load_file(path).values()) == job.bytes_written


def test_metagpt_weighs_by_squares_of_norms(project: Project) -> None:
    base, a, b = (_model(project, f"models/{key}") for key in ("base", "a", "b"))
    vectors = [{k: m[k].double() - base[k].double() for k in base} for m in (a, b)]
    squares = [sum(float((v**2).sum()) for v in one.values()) for one in vectors]
    found = _model(project, "results/gpt/model")
    for name, tensor in base.items():
        wanted = tensor.double() + sum(
            square / sum(squares) * one[name] for square, one in zip(squares, vectors, strict=True)
        )
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-6)


def test_every_element_is_checked(project: Project) -> None:
    for name in _DOCUMENTS:
        checks = list((project.folder / f"results/{name}/checks").glob("*.json"))
        assert checks and all(load_json(path)["not_sampled"] == [] for path in checks)


def test_measurements_are_shared_and_follow_text_and_options(
    project: Project, tmp_path: Path
) -> None:
    assert len(_measured(project)) == 6  # two models by three methods
    copy = project.copy(tmp_path / "copy")
    documents = [{"name": n, "dtype": "float32", **rest} for n, rest in _DOCUMENTS.items()]
    models = [_MODELS[0] | {"parameters": {"weight": 0.5}}, _MODELS[1]]
    again = {"name": "more", **_DOCUMENTS["reg"], "models": models}
    copy.write_documents([*documents, again])
    pending = copy.pending()
    assert any("results/more/" in path for path in pending)
    assert not any("results/measured/" in path for path in pending)
    documents[0]["parameters"] = _READING | {"tokens": 64}
    copy.write_documents(documents)
    assert sum("results/measured/" in path for path in copy.pending()) == 2
