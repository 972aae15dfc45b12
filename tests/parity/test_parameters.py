"""Every parameter of every method, by a recipe, away from its default: against mergekit's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from oracle import differing_bits, run_mergekit, run_shardmerge

from helpers.models import llama
from shardmerge.methods.registry import REQUIRED, in_mergekit, method, methods, result_dtype

MERGEKIT = "mergekit-0.1.5"
NAMES = [m.name for m in methods() if in_mergekit(m.name)]
#: What each method needs to run at all, or to choose nothing at random.
GIVEN = {"t": 0.3}
#: A value away from the default of each parameter; one for each model where there are several.
VALUES: dict[str, Any] = {
    "weight": (0.7, 0.4, 0.2),
    "density": (0.6, 0.8, 0.5),
    "gamma": (0.1, 0.05, 0.2),
    "epsilon": (0.1, 0.05, 0.15),
    "scale": (1.25,),
    "lambda": 0.7,
    "t": 0.8,
    "eps": 1e-3,
    "max_iter": 2,
    "tol": 0.1,
    "select_topk": 0.5,
    "r": 0.5,
    "alpha": 0.7,
}
#: Another value where the name means something else.
OWN = {("ram", "epsilon"): 0.02, ("ramplus_tl", "epsilon"): 0.02, ("nearswap", "t"): 0.01}
#: What else a parameter needs to have an effect.
WITH = {
    "nuslerp_row_wise": {"nuslerp_flatten": False},
    "epsilon": {"density": 0.6},
    "gamma": {"density": 0.6},
    "rescale": {"density": 0.6},
    "alpha": {"r": 0.5, "epsilon": 0.02},
    "r": {"epsilon": 0.02},
}
#: At random: what mergekit draws depends on the order of its tensors (see docs/methods.md).
RANDOM = ("density", "epsilon")


def documents(name: str, checkpoints: list[Path]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return for each parameter of a method a document with it, and the same without it."""
    declared = method(name)
    made = []
    for parameter in declared.parameters:
        if parameter.name == "seed" or (not declared.deterministic and parameter.name in RANDOM):
            continue
        needed = {
            p.name: GIVEN.get(p.name, 0.5) for p in declared.parameters if p.default is REQUIRED
        }
        for key, value in WITH.get(parameter.name, {}).items():
            if declared.parameter(key) and (declared.deterministic or key not in RANDOM):
                needed[key] = value
        value = OWN.get((name, parameter.name), VALUES.get(parameter.name))
        if parameter.type is bool:
            value = not parameter.default
        label = f"by-{parameter.name}"
        made.append(
            tuple(
                document(name, label, values, checkpoints, True)
                for values in (needed | {parameter.name: value}, needed)
            )
        )
    if not made:
        made.append((document(name, "plain", {}, checkpoints, True),) * 2)
    if declared.inputs.base == "optional":
        values = {"weight": VALUES["weight"]}
        pair = [document(name, "without-base", values, checkpoints, b) for b in (False, True)]
        made.append(tuple(pair))
    return made


def document(
    name: str, label: str, values: dict[str, Any], checkpoints: list[Path], based: bool
) -> dict[str, Any]:
    declared = method(name)
    inputs, has_base = declared.inputs, based and declared.inputs.base in ("required", "optional")
    most = inputs.maximum_models or (inputs.maximum - has_base if inputs.maximum else 3)
    models = [{"model": str(path)} for path in checkpoints[1 : 1 + min(most, 3)]]
    made: dict[str, Any] = {"name": label, "merge_method": name, "models": models}
    if has_base:
        made["base_model"] = str(checkpoints[0])
    for key, value in values.items():
        if declared.parameter(key).scope == "shared":
            made.setdefault("parameters", {})[key] = value
            continue
        for i, entry in enumerate(models):
            own = value[i] if isinstance(value, tuple) else value
            entry.setdefault("parameters", {})[key] = own
        if has_base and declared.parameter(key).scope == "input":
            made.setdefault("parameters", {})[key] = value[0] if isinstance(value, tuple) else value
    if result_dtype(name, MERGEKIT, "F16") != "F16":
        made["out_dtype"] = "float16"
    return made


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [llama(root / name, seed=i, layers=1) for i, name in enumerate("abcd")]


@pytest.mark.parametrize("name", NAMES)
class TestEveryParameter:
    def test_no_bit_differs(self, name: str, checkpoints: list[Any], tmp_path: Path) -> None:
        pairs = documents(name, checkpoints)
        recipe, plain = tmp_path / "recipe.yaml", tmp_path / "plain.yaml"
        recipe.write_text(yaml.safe_dump_all([p[0] for p in pairs], sort_keys=False))
        plain.write_text(yaml.safe_dump_all([p[1] for p in pairs], sort_keys=False))
        theirs = run_mergekit(recipe, tmp_path / "mergekit")
        ours = run_shardmerge(recipe, tmp_path, numerics=MERGEKIT)
        without = run_shardmerge(plain, tmp_path, numerics=MERGEKIT, results="plain")
        assert list(ours) == list(theirs)
        for label, tensors in ours.items():
            assert differing_bits(tensors, theirs[label]) == {}, label
            if label != "plain" and label.removeprefix("by-") not in idle(name):
                assert differing_bits(tensors, without[label]), f"{label} has no effect"

    def test_float32_is_near(self, name: str, checkpoints: list[Any], tmp_path: Path) -> None:
        wide = [pair[0] | {"dtype": "float32"} for pair in documents(name, checkpoints)]
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump_all(wide, sort_keys=False))
        theirs = run_mergekit(recipe, tmp_path / "mergekit")
        ours = run_shardmerge(recipe, tmp_path)
        for label, tensors in theirs.items():
            for tensor, value in tensors.items():
                near = torch.isclose(ours[label][tensor], value, rtol=1e-4, atol=1e-6)
                # Of two equal magnitudes of float16 either may be kept, by methods that choose.
                assert near.float().mean() > 0.98, (label, tensor)


def idle(name: str) -> set[str]:
    """Return the parameters that change no result: by declaration, or with nothing left out."""
    declared = method(name)
    found = {p.name for p in declared.parameters if p.unused or p.idle}
    return found | (set() if declared.deterministic else {"rescale"})


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("ties", "density", [1.4, -0.3, [-0.6, 2.2, 0.4]]),
        ("breadcrumbs", "density", [1.4, -0.3, [-0.6, 2.2, 0.4]]),
        ("breadcrumbs_ties", "density", [[1.8, 0.5, -1], 0.4, 1.1]),
        ("dare_ties", "density", [1.4, 1.0, 7]),
        ("dare_linear", "density", [1.4, 1.0, 7]),
        ("della", "density", [1.4, -0.3, 0.0]),
        ("della_linear", "density", [1.4, -0.3, 0.0]),
        ("sce", "select_topk", [1.5]),
        ("sce", "select_topk", [-1]),
        ("sce", "select_topk", [[-0.6, 2.2, 0.4]]),
    ],
)
def test_beyond_the_bounds(name: str, key: str, values: list[Any], tmp_path: Path) -> None:
    """What mergekit takes the nearer bound for; a gradient is interpolated first."""
    checkpoints = [llama(tmp_path / letter, seed=i, layers=5) for i, letter in enumerate("abcd")]
    shared = len(values) == 1
    given = {key: values[0] if shared else tuple(values)}
    given |= {} if shared else {"weight": VALUES["weight"]}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(document(name, "m", given, checkpoints, True), sort_keys=False)
    )
    theirs = run_mergekit(recipe, tmp_path / "mergekit")["m"]
    ours = run_shardmerge(recipe, tmp_path, numerics=MERGEKIT)["m"]
    assert differing_bits(theirs, ours) == {}
