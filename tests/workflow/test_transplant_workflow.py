"""A model gets a donor's tokenizer, from the sources to what it makes of a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from helpers.renumbered import TABLES, write_renumbered
from helpers.workflow import REPOSITORY, Project
from shardmerge.base.files import load_json
from shardmerge.benchmark.loading import language_model
from shardmerge.benchmark.options import EvalOptions
from shardmerge.benchmark.perplexity import measure_perplexity
from shardmerge.benchmark.probe_options import probe_options
from shardmerge.benchmark.probe_text import tokenized
from shardmerge.recipe.settings import load_settings

pytestmark = pytest.mark.slow
MODEL, OTHER = (REPOSITORY / "resources" / "demo" / name for name in ("miqu-tiny", "midnight-tiny"))
#: Letters of the demo's words, and letters that mean the same to the donor alone.
LETTERS, ALIASES = "abcdefghijkl", "mnopqrstuvwx"
TEXT = (REPOSITORY / "config/tasks/demo/text.txt").read_text(encoding="utf-8")[:2000]
ALIAS_TEXT = TEXT.translate(str.maketrans(LETTERS, ALIASES))


def write_donor(target: Path) -> Path:
    """Write a fine-tune whose tokens have other ids, and which knows each letter twice."""
    noise = torch.Generator().manual_seed(0)

    def extend(table: dict[str, Any], first: int) -> int:
        table["model"]["vocab"] |= {token: first + i for i, token in enumerate(ALIASES)}
        return len(ALIASES)

    def rows(whole: torch.Tensor, vocab: Mapping[str, int]) -> torch.Tensor:
        alike = whole[[vocab[letter] for letter in LETTERS]]
        return (alike + 0.02 * alike.std() * torch.randn(alike.shape, generator=noise)).half()

    return write_renumbered(OTHER, target, extend, rows)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("transplant"))
    donor = write_donor(made.folder / "donor")
    made.configure(sources={})
    made.write_documents(
        {
            "name": name,
            "merge_method": "passthrough",
            "models": [{"model": str(MODEL)}],
            "tokenizer": {"source": str(donor), "approximate": how},
        }
        for name, how in {
            "omp": {"method": "omp", "k": 4},
            "mean": "mean",
            "zero": "zero",
        }.items()
    )
    made.build("models", "results/omp/loaded.json")
    return made


def perplexity(folder: Path, text: str) -> float:
    """Return the perplexity that the probe of that name finds."""
    settings = load_settings({"benchmark": {"probes": {"text": "text.txt", "context": 32}}})
    model = language_model(folder, EvalOptions(backend="hf", device="cpu", dtype="float32"))
    found = measure_perplexity(
        model, tokenized(model.tokenizer, text), probe_options(settings["benchmark"])
    )
    return found.values["perplexity"]["token_perplexity"][0]


def test_it_loads_with_the_donors_tokens(project: Project) -> None:
    folder = project.folder / "results/omp/model"
    assert load_json(project.folder / "results/omp/loaded.json")["architecture"]
    wanted = AutoTokenizer.from_pretrained(project.folder / "donor").get_vocab()
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == wanted
    config = load_json(folder / "config.json")
    donor = load_json(project.folder / "donor/config.json")
    for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
        assert config[key] == donor[key], key
    assert config["rope_theta"] == load_json(MODEL / "config.json")["rope_theta"]


def test_shared_tokens_keep_their_rows(project: Project) -> None:
    own = AutoTokenizer.from_pretrained(MODEL).get_vocab()
    ids = AutoTokenizer.from_pretrained(project.folder / "donor").get_vocab()
    before, after = ({}, {})
    for found, folder in ((before, MODEL), (after, project.folder / "results/omp/model")):
        for path in folder.glob("*.safetensors"):
            found |= load_file(path)
    for name in TABLES:
        for token, row in own.items():
            assert torch.equal(after[name][ids[token]], before[name][row]), (name, token)


def test_new_tokens_are_understood(project: Project) -> None:
    """Perplexity before, and after of the same text in tokens that only the donor had."""
    found = {
        name: perplexity(project.folder / "results" / name / "model", ALIAS_TEXT)
        for name in ("omp", "mean", "zero")
    }
    print(found, perplexity(MODEL, TEXT), perplexity(project.folder / "results/omp/model", TEXT))
    assert found["omp"] < 0.5 * min(found["mean"], found["zero"])
    # each letter has two tokens now, which share its probability
    assert found["omp"] < 2.5 * perplexity(MODEL, TEXT)


def test_what_is_made_has_the_size_that_was_planned(project: Project) -> None:
    for job, path in project.made():
        assert sum(tensor.nbytes for tensor in load_file(path).values()) == job.bytes_written


def test_an_edit_of_the_merge_looks_for_no_rows_again(project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "copy")
    documents = copy.documents()
    documents[0]["out_dtype"] = "float32"
    copy.write_documents(documents)
    pending = copy.pending()
    assert any("omp/model" in path for path in pending)
    assert not any("transplants" in path for path in pending)
    documents[0]["tokenizer"]["approximate"]["k"] = 3
    copy.write_documents(documents)
    assert sum("results/transplants/" in path for path in copy.pending()) == 2
