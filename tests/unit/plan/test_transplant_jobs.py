"""Jobs that find rows of tokens: what they write, what they refuse, and their memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny_tokenizers import tokenized
from shardmerge.algebra.transplant import DonorTensor, TransplantSpec
from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import write_header
from shardmerge.base.unfinished import Keeping, Unfinished
from shardmerge.engine.transplant import RowTerms, terms_file
from shardmerge.plan.transplants import make_terms


def spec_of(table: torch.Tensor, **values: Any) -> TransplantSpec:
    """Return what makes the last two rows of a table of the others."""
    last = len(table) - 2
    donor = DonorTensor(
        identity="sha256:0",
        tensor="w",
        dtype={torch.float32: "F32", torch.float16: "F16"}[table.dtype],
        shape=tuple(table.shape),
        shared=f"0+{last}",
        targets=f"{last}+2",
    )
    given = {"method": "omp", "count": 2, "most": 3, "limit": 99, "donor": donor}
    return TransplantSpec(**(given | {"own": f"50+{last}"} | values))


@pytest.fixture
def table(tmp_path: Path) -> torch.Tensor:
    points = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    points[10] = 2.0 * points[4] - 0.5 * points[7]
    points[11] = points[3]
    save_file({"w": points}, tmp_path / "donor.safetensors")
    return points


def found(spec: TransplantSpec, folder: Path) -> RowTerms:
    return make_terms(spec, [folder / "donor.safetensors"])


def test_what_is_a_sum_is_found(table: torch.Tensor, tmp_path: Path) -> None:
    terms = found(spec_of(table), tmp_path)
    by_row = [
        {row: round(w, 5) for row, w in zip(r, v, strict=True) if row >= 0 and abs(w) > 1e-6}
        for r, v in zip(terms.rows.tolist(), terms.weights.tolist(), strict=True)
    ]
    assert by_row == [{54: 2.0, 57: -0.5}, {53: 1.0}]
    assert terms.errors.max() < 1e-6
    assert terms.told.startswith("2 rows; relative errors from")


def test_what_is_written(table: torch.Tensor, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(terms_file(found(spec_of(table), tmp_path)))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    written = load_file(tmp_path / "one")
    assert {n: (t.dtype, tuple(t.shape)) for n, t in written.items()} == {
        "rows": (torch.int32, (2, 3)),
        "weights": (torch.float32, (2, 3)),
        "errors": (torch.float32, (2,)),
    }


def test_neither_threads_nor_batches_decide(
    table: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(1)
    large = torch.randn(400, 64, generator=random)
    save_file({"w": large}, tmp_path / "donor.safetensors")
    donor = spec_of(large).donor
    donor = DonorTensor(**{**donor.__dict__, "shared": "0+300", "targets": "300+100"})
    spec = spec_of(large, count=100, most=20, donor=donor, own="0+300")
    whole = found(spec, tmp_path)
    monkeypatch.setattr("shardmerge.engine.transplant.WORK_BYTES", 1 << 18)
    for threads in (1, 3):
        parts = make_terms(spec, [tmp_path / "donor.safetensors"], threads=threads)
        assert torch.equal(parts.rows, whole.rows)
        assert torch.equal(parts.weights, whole.weights)
    torch.set_num_threads(1)


def test_a_killed_job_finds_the_rest_alone(
    table: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row at a time: the second is found after the kill."""
    monkeypatch.setattr("shardmerge.engine.transplant.WORK_BYTES", 1)
    spec, files = spec_of(table), [tmp_path / "donor.safetensors"]
    always = Keeping("job", least=0.0, share=1.0)

    def make(output: Path, progress: Any, keeping: Keeping) -> bytes:
        with Unfinished(output, keeping) as work:
            work.write(terms_file(make_terms(spec, files, work=work, progress=progress)))
        return output.read_bytes()

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    again: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "made", kill, always)
    found = make(tmp_path / "made", lambda done, total: again.append(done), always)
    assert again == [2]
    assert found == make(tmp_path / "whole", lambda done, total: None, Keeping())


def test_another_file(table: torch.Tensor, tmp_path: Path) -> None:
    save_file({"w": table[:11].clone()}, tmp_path / "donor.safetensors")
    with pytest.raises(UserError, match="is not as the plan has it"):
        found(spec_of(table), tmp_path)


def test_values_that_are_not_finite(table: torch.Tensor, tmp_path: Path) -> None:
    table[2, 2] = float("nan")
    save_file({"w": table}, tmp_path / "donor.safetensors")
    with pytest.raises(UserError, match="infinite or NaN"):
        found(spec_of(table), tmp_path)


def test_a_row_of_zeros_is_made_of_none(table: torch.Tensor, tmp_path: Path) -> None:
    table[10] = 0
    save_file({"w": table}, tmp_path / "donor.safetensors")
    terms = found(spec_of(table), tmp_path)
    assert (terms.rows[0] == -1).all()


def test_parts_of_tokens(tmp_path: Path) -> None:
    folder = tokenized(tmp_path / "m", 0, ["the", "cat"])
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    spec = TransplantSpec(
        method="subword", count=2, most=8, limit=len(vocab), weighting="mean",
        texts=("thecat", " the"), tokenizer=(("tokenizer.json", "sha256:0"),),
    )  # fmt: skip
    terms = make_terms(spec, [folder / "tokenizer.json"])
    wanted = [sorted(vocab[t] for t in tokens) for tokens in (("the", "cat"), ("Ġ", "the"))]
    assert [[row for row in r if row >= 0] for r in terms.rows.tolist()] == wanted
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError):
        make_terms(spec, [folder / "tokenizer.json"])


@pytest.mark.slow
def test_memory_is_foretold(tmp_path: Path) -> None:
    shape = (60_000, 1_000)  # 240 MB in float32
    path = tmp_path / "donor.safetensors"
    path.write_bytes(write_header([("w", "F16", shape)], {}))
    os.truncate(path, path.stat().st_size + 2 * shape[0] * shape[1])
    donor = DonorTensor(
        identity="sha256:0", tensor="w", dtype="F16", shape=shape,
        shared="0+58000", targets="58000+2000",
    )  # fmt: skip
    spec = TransplantSpec(
        method="omp", count=2000, most=4, limit=58_000, own="0+58000", donor=donor
    )
    script = (
        "import json, pathlib, sys\n"
        "from shardmerge.algebra.transplant import TransplantSpec\n"
        "from shardmerge.base import forms\n"
        "from shardmerge.engine.record import peak_memory\n"
        "from shardmerge.plan.transplants import make_terms\n"
        "spec = forms.read(TransplantSpec, json.load(sys.stdin))\n"
        "make_terms(spec, [pathlib.Path(sys.argv[1])])\n"
        "print(peak_memory())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        input=json.dumps(spec.to_json()),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) <= 400_000_000 + spec.memory
