"""The same recipe, the same checkpoints: 0 differing bits to mergekit 0.1.5, or a smaller error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import differing_bits, load_folder, run_mergekit, run_shardmerge

from helpers.models import llama

REPO = Path(__file__).parents[2]
MODES = {"mergekit": "mergekit-0.1.5"}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class TestFlagship:
    @pytest.fixture(scope="class")
    def recipe(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("flagship")
        text = (REPO / "config/recipes/miquplus-midnight-tiny.yaml").read_text()
        recipe = folder / "flagship.yaml"
        recipe.write_text(text.replace("resources/demo", str(REPO / "resources/demo")))
        return recipe

    @pytest.fixture(scope="class")
    def oracle(self, recipe: Path) -> Any:
        return run_mergekit(recipe, recipe.parent / "mergekit")["miquplus-midnight-tiny"]

    def test_bits(self, recipe: Path, oracle: dict[str, Any]) -> None:
        ours = run_shardmerge(recipe, recipe.parent, numerics=MODES["mergekit"], results="exact")
        assert differing_bits(ours["miquplus-midnight-tiny"], oracle) == {}

    @pytest.mark.parametrize("deltas", ["store", "fuse"])
    def test_error(self, recipe: Path, oracle: dict[str, Any], deltas: str) -> None:
        ours = run_shardmerge(recipe, recipe.parent, deltas=deltas, results=deltas)
        ours = ours["miquplus-midnight-tiny"]
        demo = REPO / "resources/demo"
        q, m, b = (load_folder(demo / f"{n}-tiny") for n in ("miqu", "midnight", "llama2"))
        gradient = [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0]
        for name in q:
            exact = q[name].double()
            parts = name.split(".")
            if parts[1] == "layers" and parts[-2] in (
                "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj",
            ):  # fmt: skip
                scaled = int(parts[2]) / 11 * 10
                low = int(scaled)
                high = min(low + 1, 10)
                g = (1 - (scaled - low)) * gradient[low] + (scaled - low) * gradient[high]
                exact = exact + g * (m[name].double() - b[name].double())
            mine = (ours[name].double() - exact).abs().max()
            theirs = (oracle[name].double() - exact).abs().max()
            assert mine <= theirs + 1e-12, name


@st.composite
def parameter(draw: Any, low: float = -1.5, high: float = 2.0) -> Any:
    number = st.integers(int(low * 1000), int(high * 1000)).map(lambda x: x / 1000)
    gradient = st.lists(number, min_size=1, max_size=5)
    value = st.one_of(number, gradient)
    if draw(st.booleans()):
        return draw(value)
    words = st.sampled_from(["v_proj", "mlp", "norm", "layers.1", "proj", "embed"])
    rules = [{"filter": draw(words), "value": draw(value)} for _ in range(draw(st.integers(1, 3)))]
    return [*rules, {"value": draw(number)}]


@st.composite
def document(draw: Any, name: str, models: list[str]) -> Any:
    method = draw(st.sampled_from(["linear", "task_arithmetic", "passthrough"]))
    doc: dict = {"name": name, "merge_method": method}
    count = 1 if method == "passthrough" else draw(st.integers(1, len(models)))
    chosen = draw(st.permutations(models))[:count]
    dtype = draw(st.sampled_from([None, "float16", "bfloat16", "float32"]))
    out_dtype = draw(st.sampled_from([None, None, "float16", "bfloat16", "float32"]))
    if method == "task_arithmetic":
        doc["base_model"] = draw(st.sampled_from(models))
        doc["parameters"] = {
            "weight": draw(parameter()),
            "normalize": draw(st.booleans()),
            "lambda": draw(st.sampled_from([1.0, 0.7, 1.3])),
        }
    elif method == "linear":
        doc["parameters"] = {"weight": draw(parameter(0.1, 2.0)), "normalize": draw(st.booleans())}
        if draw(st.booleans()):
            doc["base_model"] = draw(st.sampled_from(chosen))
    entries = []
    for model in chosen:
        entry: dict = {"model": model}
        if method == "passthrough" and draw(st.booleans()):
            entry["parameters"] = {"scale": draw(parameter())}
        elif draw(st.booleans()):
            entry["parameters"] = {"weight": draw(parameter(0.1, 2.0))}
        entries.append(entry)
    doc["models"] = entries
    if dtype:
        doc["dtype"] = dtype
    if out_dtype:
        doc["out_dtype"] = out_dtype
    return doc


@st.composite
def recipes(draw: Any) -> tuple[Any, ...]:
    models = ["a", "b", "c"]
    first = draw(document("first", models))
    second = draw(document("second", [*models, "first"]))
    dtypes = {m: draw(st.sampled_from(sorted(DTYPES))) for m in models}
    if draw(st.booleans()):
        dtypes = dict.fromkeys(models, dtypes["a"])
    return [first, second], dtypes


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for name, dtype in DTYPES.items():
        for i, model in enumerate("abc"):
            llama(root / name / model, seed=10 + i, layers=3, files=i + 1, dtype=dtype)
    return root


def _write(documents: Any, dtypes: Any, checkpoints: Any, folder: Path) -> Path:
    def place(value: Any) -> Any:
        return str(checkpoints / dtypes[value] / value) if value in dtypes else value

    for doc in documents:
        if "base_model" in doc:
            doc["base_model"] = place(doc["base_model"])
        for entry in doc["models"]:
            entry["model"] = place(entry["model"])
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return recipe


class TestGenerated:
    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(drawn=recipes())
    def test_bits(self, drawn: Any, checkpoints: Any, tmp_path: Path) -> None:
        documents, dtypes = drawn
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        recipe = _write(documents, dtypes, checkpoints, folder)
        oracle = run_mergekit(recipe, folder / "mergekit")
        names = [d["name"] for d in documents]
        ours = run_shardmerge(recipe, folder, numerics=MODES["mergekit"], stages=names,
                              allow_nonfinite=True)  # fmt: skip
        for name in names:
            assert differing_bits(ours[name], oracle[name]) == {}, name
