"""Exports in llama.cpp itself: the same greedy tokens as in transformers, nearly the same logits.

The tests build llama.cpp once, which takes half an hour on two cores; `make test` leaves them out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from local_llama import llama_cpp, served, small_model

from helpers.workflow import DEMO, DEMO_NAME, REPOSITORY, Project

pytestmark = pytest.mark.gguf
pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def llama() -> Path:
    return llama_cpp()


def exported(folder: Path, llama: Path, recipe: str, **changes: Any) -> Project:
    """Return a project whose model was exported by a run of the workflow."""
    folder.mkdir(parents=True, exist_ok=True)
    project = Project(folder)
    project.recipe.write_text(recipe, encoding="utf-8")
    settings = {"recipes": ["recipe.yaml"], "llama_cpp": str(llama)} | changes
    (folder / "cfg.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    project.build("exports")
    return project


def with_sentencepiece(model: Path, target: Path) -> None:
    """Copy a demo model, with its tokenizer of single letters in a form that llama.cpp knows."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    shutil.copytree(model, target)
    told = json.loads((target / "tokenizer.json").read_text())
    letters = sorted(told["model"]["vocab"].items(), key=lambda pair: pair[1])
    made = pb.ModelProto()
    made.trainer_spec.model_type = pb.TrainerSpec.BPE
    made.normalizer_spec.name = "identity"
    made.normalizer_spec.add_dummy_prefix = False
    kinds = {"<unk>": pb.ModelProto.SentencePiece.UNKNOWN}
    kinds |= dict.fromkeys(("<s>", "</s>"), pb.ModelProto.SentencePiece.CONTROL)
    for letter, number in letters:
        kind = kinds.get(letter, pb.ModelProto.SentencePiece.NORMAL)
        made.pieces.add(piece=letter, score=-float(number), type=kind)
    (target / "tokenizer.model").write_bytes(made.SerializeToString())
    config = target / "tokenizer_config.json"
    told = json.loads(config.read_text()) | {"add_prefix_space": False}
    config.write_text(json.dumps(told))


def reference(folder: Path, prompt: Sequence[int], tokens: Sequence[int]) -> list[dict[int, float]]:
    """Return transformers' log-probabilities of all tokens, after the prompt and each token."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        rows = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return [dict(enumerate(row)) for row in rows.log_softmax(-1).tolist()]


def compare(folder: Path, llama: Path, file: Path, text: str, steps: int, shown: int) -> float:
    """Compare a continuation, and return the largest difference of a log-probability."""
    from transformers import AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with served(llama, file) as server:
        assert server.tokens(text) == prompt
        found = server.greedy(prompt, steps, shown)
    assert len(found) == steps
    wanted = reference(folder, prompt, [step.token for step in found])
    assert [step.token for step in found] == [max(row, key=row.__getitem__) for row in wanted]
    pairs = zip(found, wanted, strict=True)
    return max(abs(lp - row[token]) for step, row in pairs for token, lp in step.logprobs.items())


def likelihoods(results: Path, llama: Path, export: Path | None) -> list[tuple[float, bool]]:
    """Return what lm-eval is told of two answers, by transformers or of an export by llama.cpp."""
    from shardmerge.benchmark.loading import Beside, loaded
    from shardmerge.benchmark.options import EvalOptions

    options = EvalOptions(backend="llama_cpp" if export else "hf")
    server = str(llama / "build" / "bin" / "llama-server")
    model = results / "model"
    pairs = [("The capital of France is", " Paris"), ("Two and two is", " blue whales")]
    asked = [SimpleNamespace(args=pair, task_name="t", doc_id=0) for pair in pairs]
    with loaded(export or model, options, None, Beside(model, None, server), 2) as one:
        return one.loglikelihood(asked, disable_tqdm=True)


def test_lm_evals_own_model_is_not_answered(tmp_path: Path, llama: Path) -> None:
    """It wants log-probabilities of a prompt, in a form that llama-server does not give.

    The day that this fails, `backend: llama_cpp` may ask as lm-eval does, in one request an answer.
    """
    from lm_eval.models.gguf import GGUFLM

    with served(llama, small_model() / "model.gguf") as server:
        model = GGUFLM(base_url=server.address)
        question = SimpleNamespace(args=("The capital of France is", " Paris"))
        assert model.loglikelihood([question], disable_tqdm=True) == []


def test_demo(tmp_path: Path, llama: Path) -> None:
    recipe = (REPOSITORY / "config" / "recipes" / f"{DEMO_NAME}.yaml").read_text()
    for model in (REPOSITORY / DEMO).glob("*/"):
        with_sentencepiece(model, tmp_path / DEMO / model.name)
    types = ["f16", "bf16", "q8_0"]
    project = exported(tmp_path, llama, recipe, exports={"gguf": {"types": types}})
    results = tmp_path / "results" / DEMO_NAME
    for kind, bound in (("f16", 0.05), ("q8_0", 0.3)):
        (file,) = (results / "exports" / "gguf" / kind).glob("*.gguf")
        assert compare(results / "model", llama, file, "Babcd=", 12, 23) < bound
    assert project.pending("exports") == []


def test_demo_as_it_is_shipped_is_refused_with_a_reason(tmp_path: Path, llama: Path) -> None:
    """Its tokenizer cuts a text into words of one letter; llama.cpp has no such kind."""
    recipe = {"merge_method": "passthrough", "models": [{"model": "demo"}], "dtype": "float16"}
    project = Project(tmp_path)
    project.recipe.write_text(yaml.safe_dump(recipe))
    settings = {
        "recipes": ["recipe.yaml"],
        "sources": {"demo": str(REPOSITORY / DEMO / "llama2-tiny")},
        "llama_cpp": str(llama),
        "exports": {"gguf": {"types": ["f16"]}},
    }
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(settings))
    done = project.run("exports")
    assert done.returncode != 0
    assert "llama.cpp does not know the model's tokenizer" in done.stdout
    assert not list(tmp_path.rglob("*.gguf"))


def test_small_real_model(tmp_path: Path, llama: Path) -> None:
    """Read by transformers from GGUF, saved as safetensors, exported again."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    source = {"gguf_file": "model.gguf"}
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        small_model(), dtype=torch.bfloat16, quantization_config=unpacked, **source
    )
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(tmp_path / "smol")
    AutoTokenizer.from_pretrained(small_model(), **source).save_pretrained(tmp_path / "smol")
    recipe = {"merge_method": "passthrough", "models": [{"model": "smol"}], "dtype": "bfloat16"}
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 300)
    gguf = {"types": ["bf16", "q4_k_m"], "imatrix": "text.txt", "split_size": 120_000_000}
    exported(tmp_path, llama, yaml.safe_dump({"name": "s", **recipe}), exports={"gguf": gguf})
    exports = tmp_path / "results" / "s" / "exports"
    files = sorted((exports / "gguf" / "bf16").glob("*.gguf"))
    assert len(files) == 3 and len(list((exports / "gguf" / "q4_k_m").glob("*.gguf"))) == 1
    text = "The capital of France is"
    assert compare(tmp_path / "results" / "s" / "model", llama, files[0], text, 24, 50) < 0.2
    wanted, found = (
        likelihoods(exports.parent, llama, exports / "gguf" / kind if kind else None)
        for kind in (None, "bf16")
    )
    assert all(abs(a - b) < 0.3 for (a, _), (b, _) in zip(wanted, found, strict=True))
    assert [greedy for _, greedy in wanted] == [greedy for _, greedy in found] == [True, False]
    record = json.loads((exports / "checks" / "gguf" / "q4_k_m.json").read_text())
    assert 0.01 < record["errors"]["median"] < 0.1 and record["errors"]["compared"] == 272
