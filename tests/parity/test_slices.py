"""Slices and modules beside mergekit 0.1.5: the same recipe, 0 differing bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import llama
from oracle import differing_bits, run_mergekit, run_shardmerge

LAYERS = {"a": 4, "b": 5, "c": 3}
#: Methods that both compute without randomness, with what their entries and slices may set.
METHODS = {
    "passthrough": {"input": ["scale"]},
    "linear": {"input": ["weight"], "shared": ["normalize"]},
    "task_arithmetic": {"input": ["weight"], "shared": ["normalize", "lambda"]},
    "ties": {"input": ["weight", "density"], "shared": ["normalize", "int8_mask"]},
    "slerp": {"shared": ["t"]},
    "nuslerp": {"input": ["weight"], "shared": ["nuslerp_flatten", "nuslerp_row_wise"]},
}
BASED = ("task_arithmetic", "ties", "slerp")
RANGES = {"density": (0.2, 1.0), "t": (0.0, 1.0), "weight": (0.1, 1.5), "scale": (-1.5, 2.0)}
SWITCHES = ("normalize", "int8_mask", "nuslerp_flatten", "nuslerp_row_wise")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for i, (model, layers) in enumerate(LAYERS.items()):
        llama(root / model, seed=30 + i, layers=layers, files=i + 1)
    return root


@st.composite
def setting(draw, name: str):
    """A value, a gradient, or filters with a value for the rest."""
    if name in SWITCHES:
        return draw(st.booleans())
    if name == "lambda":
        return draw(st.sampled_from([1.0, 0.7]))
    low, high = RANGES[name]
    number = st.integers(int(low * 100), int(high * 100)).map(lambda x: x / 100)
    value = st.one_of(number, st.lists(number, min_size=2, max_size=4))
    if draw(st.booleans()):
        return draw(value)
    words = st.sampled_from(["v_proj", "mlp", "norm", "layers.1", "layers.2.", "embed"])
    rules = [{"filter": draw(words), "value": draw(value)} for _ in range(draw(st.integers(1, 2)))]
    return [*rules, {"value": draw(number)}] if draw(st.booleans()) else rules


@st.composite
def level(draw, names: list[str]):
    chosen = [name for name in names if draw(st.booleans())]
    return {name: draw(setting(name)) for name in chosen}


@st.composite
def piece(draw, method: str, base: str | None):
    own = base
    if method == "passthrough":
        models = [draw(st.sampled_from(sorted(LAYERS)))]
    else:
        count = 2 if method in ("slerp", "nuslerp") else draw(st.integers(2, 3))
        models = draw(st.permutations(sorted(LAYERS)))[:count]
        if method in BASED and (base not in models or draw(st.booleans())):
            own = draw(st.sampled_from(models))
    length = draw(st.integers(1, min(LAYERS[m] for m in models)))
    sources = []
    for model in models:
        start = draw(st.integers(0, LAYERS[model] - length))
        source: dict = {"model": model, "layer_range": [start, start + length]}
        if parameters := draw(level(METHODS[method].get("input", []))):
            source["parameters"] = parameters
        sources.append(source)
    made: dict = {"sources": sources}
    if own != base:
        made["base_model"] = own
    known = METHODS[method].get("input", []) + METHODS[method].get("shared", [])
    if parameters := draw(level(known)):
        made["parameters"] = parameters
    return made


@st.composite
def documents(draw):
    method = draw(st.sampled_from(sorted(METHODS)))
    base = draw(st.sampled_from(sorted(LAYERS))) if method in BASED else None
    first = draw(piece(method, base))
    rest = [draw(piece(method, base)) for _ in range(draw(st.integers(0, 2)))]
    # mergekit reads as many sources for what follows the layers as the first slice has.
    slices = [first, *(s for s in rest if len(s["sources"]) == len(first["sources"]))]
    top = {name: 0.5 for name in ("weight", "t") if name in str(METHODS[method])}
    known = METHODS[method].get("input", []) + METHODS[method].get("shared", [])
    document: dict = {"name": "out", "merge_method": method}
    document["parameters"] = top | {
        name: value for name, value in draw(level(known)).items() if name not in top
    }
    if base:
        document["base_model"] = base
    if draw(st.booleans()):
        module: dict = {"slices": slices}
        if parameters := draw(level(known)):
            module["parameters"] = parameters
        document["modules"] = {"default": module}
    else:
        document["slices"] = slices
    document["dtype"] = draw(st.sampled_from(["float16", "bfloat16", "float32"]))
    return document


def place(value, root: Path):
    """Return a document with the models' folders for their names."""
    if isinstance(value, list):
        return [place(v, root) for v in value]
    if isinstance(value, dict):
        return {
            k: str(root / v) if k in ("model", "base_model") else place(v, root)
            for k, v in value.items()
        }
    return value


def both(document: dict, folder: Path, **config):
    """Return the tensors that mergekit and we make of a document."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    oracle = run_mergekit(recipe, folder / "mergekit")
    config = {"numerics": "mergekit-0.1.5", "allow_nonfinite": True} | config
    ours = run_shardmerge(recipe, folder, **config)
    return oracle[document["name"]], ours[document["name"]]


class TestGenerated:
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(document=documents())
    def test_bits(self, document, checkpoints, tmp_path):
        try:
            oracle, ours = both(place(document, checkpoints), tmp_path / "case")
        except Exception:
            print(yaml.safe_dump(document, sort_keys=False))
            raise
        assert differing_bits(ours, oracle) == {}, yaml.safe_dump(document, sort_keys=False)
