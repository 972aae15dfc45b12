"""Tokenizer transplants beside mergekit-tokensurgeon: the same rows, but for the last bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from oracle import load_folder, run_shardmerge

from helpers.tiny_tokenizers import tokenized
from shardmerge.check.shard import check_shard
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import load_spec
from shardmerge.recipe.settings import load_settings

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = {"<s>": True, "</s>": True}
#: Those of the model are called otherwise, and stand elsewhere.
OTHER_SPECIAL = {"<end>": True, "<begin>": True}
OTHER_NAMED = {"bos_token": "<begin>", "eos_token": "<end>"}


def write_models(root: Path, **kinds: Any) -> tuple[Path, Path]:
    """Write a model and a donor of another width, each with tokens that the other lacks."""
    base = {"dtype": torch.float32} | kinds.get("base", {})
    donor = {"dtype": torch.float32, "width": 24} | kinds.get("donor", {})
    model = tokenized(
        root / "model", 0, ("the", "cat", "sat"), OTHER_SPECIAL, **OTHER_NAMED, **base
    )
    words = ("the", "dog", "ran", "big")
    return model, tokenized(root / "donor", 1, words, SPECIAL | {"<new>": False}, **NAMED, **donor)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def theirs(models: tuple[Path, Path], out: Path, *options: str) -> dict[str, torch.Tensor]:
    """Return what mergekit-tokensurgeon makes."""
    from mergekit.io.tasks import LoaderCache
    from mergekit.scripts.tokensurgeon import main

    LoaderCache().loaders.clear()
    arguments = [str(models[0]), str(models[1]), str(out), "--quiet", *options]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return load_folder(out)


def ours(
    models: tuple[Path, Path], work: Path, approximate: Any, numerics: str = "float32", **keys: Any
) -> dict[str, torch.Tensor]:
    """Return what a recipe makes, each shard checked."""
    document = {
        "name": "out",
        "merge_method": "passthrough",
        "models": [{"model": str(models[0])}],
        "tokenizer": {"source": str(models[1]), "approximate": approximate},
    } | keys
    recipe = work / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    made = run_shardmerge(recipe, work, numerics=numerics)["out"]
    check(recipe, work, numerics)
    return made


def check(recipe: Path, work: Path, numerics: str) -> None:
    """Show that the check of every shard finds it right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        settings = load_settings({"recipes": [str(recipe)], "numerics": numerics})
        plan = load_plan(settings, say=lambda line: None)
        for job in plan.builds["out"].shards:
            spec = load_spec(job.digest)
            files = dict(zip(spec.required_files(), map(Path, job.sources), strict=True))
            found = check_shard(spec, Path(job.output), files, [])
            assert found


def assert_close(made: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert sorted(made) == sorted(wanted)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
@pytest.mark.parametrize(
    ("approximate", "options"),
    [
        ({"method": "omp", "k": 5}, ["-k", "5"]),
        ({"method": "omp", "k": 12}, ["-k", "12", "--batch-size", "2"]),
        ({"method": "common_interpolation", "k": 4}, ["-a", "common_interpolation", "-k", "4"]),
        (
            {"method": "common_interpolation", "k": 3, "cosine_similarity": True},
            ["-a", "common_interpolation", "-k", "3", "-c"],
        ),
        (
            {"method": "common_interpolation", "k": 6, "weight_scheme": "barycentric"},
            ["-a", "common_interpolation", "-k", "6", "-w", "barycentric"],
        ),
        (
            {"method": "common_interpolation", "k": 6, "weight_scheme": "least_squares"},
            ["-a", "common_interpolation", "-k", "6", "-w", "least_squares"],
        ),
        ({"method": "subword"}, ["-a", "subword"]),
        ({"method": "subword", "subword_method": "sum"}, ["-a", "subword", "-s", "sum"]),
        (
            {"method": "subword", "subword_method": "first_last"},
            ["-a", "subword", "-s", "first_last"],
        ),
        ("mean", ["-a", "mean"]),
        ("zero", ["-a", "zero"]),
        (
            {"method": "zero", "prefix_match": "yes", "new_vocab_scale": 0.5},
            ["-a", "zero", "--prefix-match", "yes"],
        ),
        (
            {"method": "omp", "k": 4, "new_vocab_scale": 0.5},
            ["-k", "4", "--new-vocab-scale", "0.5"],
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_the_same_rows(
    models: tuple[Path, Path], tmp_path: Path, approximate: Any, options: list[str], numerics: str
) -> None:
    made = ours(models, tmp_path, approximate, numerics)
    assert_close(made, theirs(models, tmp_path / "mergekit", *options))
