"""Text models into the decoders of models that see, and these decoders as text models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.built_model import Built, merge
from helpers.engine_cases import SMALL, tuned
from helpers.vision_models import FAMILIES, Family, load, told

QUICK = ("llava", "mllama")
ALL = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name)
    for name in FAMILIES
]
#: Models that say nothing without a picture.
BLIND = ("idefics",)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder of a family's models: ``vlm``, ``base`` and ``tuned``."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            FAMILIES[name].save(made[name] / "vlm", 0)
            FAMILIES[name].save_text(made[name] / "base", 1)
            FAMILIES[name].save_text(made[name] / "tuned", 2)
        return made[name]

    return of


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def built(folder: Path, *recipe: dict[str, Any], **config: Any) -> Built:
    """Merge models of a folder."""
    sources = {path.name: str(path) for path in sorted(folder.iterdir())}
    text = "\n---\n".join(json.dumps(document) for document in recipe)
    with tuned(**SMALL):
        return merge(text, sources=sources, **config)


def weighed(method: str = "linear", **weights: float) -> dict[str, Any]:
    rows = [{"model": name, "parameters": {"weight": w}} for name, w in weights.items()]
    return {"merge_method": method, "models": rows, "dtype": "float32"}


TASK_VECTOR = weighed(vlm=1, tuned=0.5, base=-0.5) | {"parameters": {"normalize": False}}
TEXT_ALONE = {
    "merge_method": "passthrough",
    "modules": {"text_decoder": {"models": [{"model": "vlm"}]}},
    "other_modules": "drop",
    "dtype": "float32",
}


def by_hand(family: Family, folder: Path) -> torch.nn.Module:
    """Return the model that sees with half of a task vector in its decoder."""
    whole = load(folder / "vlm", family.whole[0])
    base, tuned_ = (load(folder / name, family.text[0]).state_dict() for name in ("base", "tuned"))
    tensors = whole.state_dict()
    with torch.no_grad():
        for name in base:
            there = tensors[family.named(name)]
            there[: len(base[name])] += 0.5 * (tuned_[name] - base[name])
    return whole


class TestIntoVision:
    @pytest.mark.parametrize("name", ALL)
    def test_a_task_vector_of_text_models_is_added_to_the_decoder(
        self, name: str, models: Any
    ) -> None:
        family, folder = FAMILIES[name], models(name)
        out = load(built(folder, TASK_VECTOR).folder, family.whole[0])
        wanted = by_hand(family, folder)
        for tensor, value in out.state_dict().items():
            assert torch.allclose(value, wanted.state_dict()[tensor], atol=1e-6), tensor
        if name not in BLIND:
            assert torch.allclose(told(out), told(wanted), atol=1e-5)
            assert not torch.allclose(told(out), told(load(folder / "vlm", family.whole[0])))


class TestTextAlone:
    @pytest.mark.parametrize("name", ALL)
    def test_it_says_what_the_whole_says_of_text(self, name: str, models: Any) -> None:
        family, folder = FAMILIES[name], models(name)
        out = built(folder, TEXT_ALONE).folder
        config = json.loads((out / "config.json").read_text())
        assert config["architectures"] == [family.text[0]]
        model, whole = load(out, family.text[0]), load(folder / "vlm", family.whole[0])
        for tensor, value in model.state_dict().items():
            own = whole.state_dict()[family.named(tensor)]
            assert torch.equal(value, own[: len(value)]), tensor
        if name not in BLIND:
            assert torch.allclose(told(model), told(whole), atol=1e-5)
