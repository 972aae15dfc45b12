"""Slices and modules beside mergekit 0.1.5: the same recipe, 0 differing bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import differing_bits, load_folder, run_mergekit, run_shardmerge
from safetensors.torch import load_file, save_file

from helpers.models import LLAMA, llama, llama_shapes, random_tensors, save_model
from shardmerge.recipe.recipe import load_recipe

#: An architecture whose biases mergekit knows to be optional.
GRANITE = LLAMA | {"architectures": ["GraniteForCausalLM"], "model_type": "granite"}
GRANITE |= {"num_hidden_layers": 3}
BIAS = "model.layers.{}.self_attn.q_proj.bias"
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
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for i, (model, layers) in enumerate(LAYERS.items()):
        llama(root / model, seed=30 + i, layers=layers, files=i + 1)
    return root


@st.composite
def setting(draw: Any, name: str) -> Any:
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
def level(draw: Any, names: list[str]) -> dict[Any, Any]:
    chosen = [name for name in names if draw(st.booleans())]
    return {name: draw(setting(name)) for name in chosen}


@st.composite
def piece(draw: Any, method: str, base: str | None) -> Any:
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
def documents(draw: Any) -> Any:
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


def place(value: Any, root: Path) -> Any:
    """Return a document with the models' folders for their names."""
    if isinstance(value, list):
        return [place(v, root) for v in value]
    if isinstance(value, dict):
        return {
            k: str(root / v) if k in ("model", "base_model") else place(v, root)
            for k, v in value.items()
        }
    return value


def both(document: dict, folder: Path, **config: Any) -> tuple[Any, ...]:
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
    def test_bits(self, document: Any, checkpoints: Any, tmp_path: Path) -> None:
        try:
            oracle, ours = both(place(document, checkpoints), tmp_path / "case")
        except Exception:
            print(yaml.safe_dump(document, sort_keys=False))
            raise
        assert differing_bits(ours, oracle) == {}, yaml.safe_dump(document, sort_keys=False)


class TestStages:
    """A document of slices that another one reads, and whose layers it takes apart again."""

    @pytest.mark.parametrize("outer", ["slices", "models"])
    def test_bits(self, outer: str, checkpoints: Path, tmp_path: Path) -> None:
        inner = {
            "name": "inner",
            "merge_method": "task_arithmetic",
            "base_model": "a",
            "slices": [
                {
                    "sources": [
                        {"model": m, "layer_range": [i, i + 2], "parameters": {"weight": [0.3, 1]}}
                        for m in ("a", "b")
                    ]
                }
                for i in (0, 2, 1)
            ],
            "dtype": "bfloat16",
        }
        last = {"name": "out", "merge_method": "passthrough", "dtype": "float16"}
        last["models"] = [{"model": "inner", "parameters": {"scale": [0.5, 1.0, 2.0]}}]
        if outer == "slices":
            sources = [("inner", [3, 6]), ("c", [0, 2]), ("inner", [1, 4])]
            del last["models"]
            last["slices"] = [{"sources": [{"model": m, "layer_range": r}]} for m, r in sources]
        folder = tmp_path / "case"
        folder.mkdir()
        recipe = folder / "recipe.yaml"
        documents = [place(inner, checkpoints), place(last, checkpoints)]
        text = yaml.safe_dump_all(documents, sort_keys=False)
        recipe.write_text(text.replace(str(checkpoints / "inner"), "inner"))
        oracle = run_mergekit(recipe, folder / "mergekit")
        config = {"numerics": "mergekit-0.1.5", "stages": ["inner", "out"]}
        ours = run_shardmerge(recipe, folder, **config)
        for name in ("inner", "out"):
            assert differing_bits(ours[name], oracle[name]) == {}, name


def linear(root: Path, *models: str) -> dict:
    entries = [{"model": str(root / m), "parameters": {"weight": i + 1}} for i, m in
               enumerate(models)]  # fmt: skip
    return {"name": "out", "merge_method": "linear", "models": entries, "dtype": "float16"}


class TestMissing:
    """Tensors that some models lack."""

    @pytest.fixture(scope="class")
    def mixed(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("mixed")
        for i, name in enumerate(("untied", "tied")):
            llama(root / name, seed=i)
        path = root / "tied" / "model.safetensors"
        tensors = load_file(path)
        del tensors["lm_head.weight"]
        save_file(tensors, path, {"format": "pt"})
        config = json.loads((root / "tied/config.json").read_text())
        (root / "tied/config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        for i, name in enumerate("abc"):
            biases = {} if name == "a" else {BIAS.format(i): (16,) for i in range(3)}
            tensors = random_tensors(llama_shapes(3) | biases, i)
            save_model(root / name, tensors, config=GRANITE)
        return root

    @pytest.mark.parametrize("models", [("untied", "tied"), ("tied", "untied")])
    def test_tied_embeddings(self, models: tuple[Any, ...], mixed: Path, tmp_path: Path) -> None:
        document = linear(mixed, *models) | {"base_model": str(mixed / models[0])}
        oracle, ours = both(document, tmp_path / "case")
        assert differing_bits(ours, oracle) == {}
        assert "lm_head.weight" in ours
        config = json.loads((tmp_path / "case/mergekit/out/config.json").read_text())
        assert config["tie_word_embeddings"] is (models[0] == "tied")

    def test_biases(self, mixed: Path, tmp_path: Path) -> None:
        oracle, ours = both(linear(mixed, "a", "b", "c"), tmp_path / "case")
        assert differing_bits(ours, oracle) == {}
        assert BIAS.format(1) in ours

    @pytest.mark.parametrize("method", ["slerp", "nuslerp", "arcee_fusion", "task_arithmetic"])
    def test_a_bias_that_one_has(self, method: str, mixed: Path, tmp_path: Path) -> None:
        document = linear(mixed, "b", "a") | {"merge_method": method}
        if method != "nuslerp":
            document["base_model"] = str(mixed / "b")
        if method == "slerp":
            document["parameters"] = {"t": 0.25}
        oracle, ours = both(document, tmp_path / "case")
        assert differing_bits(ours, oracle) == {}

    def test_more_sources_at_the_end_than_at_the_start(
        self, checkpoints: Path, tmp_path: Path
    ) -> None:
        """mergekit drops the third for what follows the layers; here it is merged like the rest."""
        sources = [[{"model": str(checkpoints / m), "layer_range": [0, 2]} for m in models]
                   for models in ("ab", "abc")]  # fmt: skip
        document = {
            "name": "out",
            "merge_method": "linear",
            "slices": [{"sources": s} for s in sources],
            "parameters": {"weight": 1},
            "dtype": "float32",
        }
        oracle, ours = both(document, tmp_path / "case")
        outside = ["lm_head.weight", "model.norm.weight"]
        assert sorted(differing_bits(ours, oracle)) == outside
        sources = {m: load_folder(checkpoints / m) for m in "abc"}
        for name in outside:
            for found, models in ((oracle, "ab"), (ours, "abc")):
                mean = sum(sources[m][name].double() for m in models) / len(models)
                assert (found[name].double() - mean).abs().max() < 1e-6


class TestPrediction:
    """Layers for multi-token prediction, which mergekit leaves out."""

    @pytest.fixture(scope="class")
    def predicting(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("predicting")
        config = LLAMA | {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
        for i, name in enumerate("ab"):
            shapes = llama_shapes(5) | {"model.layers.4.eh_proj.weight": (16, 32)}
            save_model(root / name, random_tensors(shapes, i), config=config)
        save_model(root / "plain", random_tensors(llama_shapes(4), 2), config=config)
        return root

    @pytest.mark.parametrize("other", ["b", "plain"])
    @pytest.mark.parametrize("sliced", [False, True])
    def test_the_other_layers_are_mergekits(
        self, predicting: Path, tmp_path: Path, other: str, sliced: bool
    ) -> None:
        inputs = [
            {"model": str(predicting / name), "parameters": {"weight": weight}}
            for name, weight in (("a", [1, 0.2]), (other, [0.1, 1]))
        ]
        document = {"merge_method": "linear", "dtype": "float16", "models": inputs}
        if sliced:
            sources = [row | {"layer_range": [0, 4]} for row in document.pop("models")]
            document["slices"] = [{"sources": sources}]
        recipe = tmp_path / "out.yaml"
        recipe.write_text(yaml.safe_dump(document, sort_keys=False))
        theirs = run_mergekit(recipe, tmp_path / "theirs")["out"]
        ours = run_shardmerge(recipe, tmp_path, numerics="mergekit-0.1.5")["out"]
        more = {name for name in ours if name.startswith("model.layers.4.")}
        assert len(more) == 10
        assert differing_bits(theirs, {n: t for n, t in ours.items() if n not in more}) == {}


def test_mergekit_builds_the_same_from_a_stack_that_is_written_out(
    checkpoints: Path, tmp_path: Path
) -> None:
    """Repeated with scales, interleaved, without some layers twice, and shuffled."""
    a, b = str(checkpoints / "a"), str(checkpoints / "b")
    both = [{"model": a, "layers": [0, 4]}, {"model": b, "layers": [1, 5]}]
    stack = [
        {"model": a, "layers": [0, 2], "repeat": 2, "scale": {"q_proj": "1/sqrt(2)"}},
        {"model": b, "layers": [0, 5], "drop": 2},
        {"interleave": both, "block": 2},
        {"shuffle": both, "seed": 3, "order": "random"},
    ]
    document = {"name": "out", "merge_method": "passthrough", "dtype": "float16", "stack": stack}
    recipe, plain = tmp_path / "stack.yaml", tmp_path / "plain.yaml"
    (tmp_path / "ours").mkdir()
    recipe.write_text(yaml.safe_dump(document))
    plain.write_text(load_recipe(recipe).text)
    ours = run_shardmerge(recipe, tmp_path / "ours", numerics="mergekit-0.1.5")["out"]
    theirs = run_mergekit(plain, tmp_path / "theirs")["out"]
    assert len(ours) > 20 * 9
    assert not any(differing_bits(ours, theirs).values())
