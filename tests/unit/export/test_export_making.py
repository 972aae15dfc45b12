"""GGUF files: what llama.cpp's programs are told and shown, and what is left of their work."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.stand_ins import StandIns
from shardmerge.base.errors import UserError
from shardmerge.export.gguf_making import convert_model, measure_importance, plain_type, quantize
from shardmerge.export.tools import LlamaCpp

ODD = "it's $(touch PWNED) {ftype} model"


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path / "llama")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / ODD
    folder.mkdir()
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "evil--code.C"}, "a": [1]}')
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x", null]}}')
    for name in ("model.safetensors", "tokenizer.json", "code.py", "README.md", ".hidden.json"):
        (folder / name).write_text("{}")
    return folder


def quantized(stand_ins: StandIns, folder: Path, kind: str = "q4_k_m", **options: object) -> Path:
    base = folder / "base.gguf"
    base.write_bytes(b"base" * 10)
    output = folder / "out" / kind
    given = {"split": 10_000, "plain": "bf16"} | options
    quantize(LlamaCpp(stand_ins.folder), base, kind, f"m-{kind.upper()}", folder=output, **given)
    return output


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


class TestConvert:
    def test_sees_no_code(self, stand_ins: StandIns, model: Path, tmp_path: Path) -> None:
        """The converter trusts what a tokenizer's configuration names; so nothing is named."""
        output = tmp_path / "out" / "base.gguf"
        convert_model(LlamaCpp(stand_ins.folder), model, "-x", "bf16", output)
        (told,) = stand_ins.told()
        assert told["model"] == [
            *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        ]
        assert "auto_map" not in json.dumps(told["texts"])
        assert json.loads(told["texts"]["config.json"]) == {"a": [1]}
        assert output.read_bytes() == b"base" and left(output.parent) == []
        assert "auto_map" in (model / "config.json").read_text()

    def test_no_name_of_ours_is_an_option_or_a_pattern(
        self, stand_ins: StandIns, model: Path, tmp_path: Path
    ) -> None:
        convert_model(LlamaCpp(stand_ins.folder), model, "-x", "bf16", tmp_path / ODD / "base.gguf")
        (told,) = stand_ins.told()
        assert told["words"] == [
            *("model", "--outfile=base.gguf", "--outtype=bf16", "--model-name=-x")
        ]
        assert not list(tmp_path.rglob("PWNED"))

    def test_failure_leaves_nothing(self, stand_ins: StandIns, model: Path, tmp_path: Path) -> None:
        stand_ins.write("convert_hf_to_gguf.py", "open('base.gguf', 'w'); exit('no such tensor')")
        with pytest.raises(UserError, match=r"convert_hf_to_gguf\.py failed.*\n  no such tensor"):
            convert_model(
                LlamaCpp(stand_ins.folder), model, "x", "bf16", tmp_path / "out" / "b.gguf"
            )
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_program_that_leaves_no_file(
        self, stand_ins: StandIns, model: Path, tmp_path: Path
    ) -> None:
        stand_ins.write("convert_hf_to_gguf.py", "")
        with pytest.raises(UserError, match="left no file"):
            convert_model(LlamaCpp(stand_ins.folder), model, "x", "bf16", tmp_path / "b.gguf")

    def test_what_a_killed_job_left_goes(
        self, stand_ins: StandIns, model: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "out" / "b[1].gguf"
        earlier, other = (output.parent / n for n in (".b[1].gguf.0a.part", ".b1.gguf.0a.part"))
        for folder in (earlier, other):
            folder.mkdir(parents=True)
        convert_model(LlamaCpp(stand_ins.folder), model, "x", "bf16", output)
        assert not earlier.exists() and other.exists()


class TestQuantize:
    def test_makes_a_folder(self, stand_ins: StandIns, tmp_path: Path) -> None:
        folder = quantized(stand_ins, tmp_path, threads=3)
        assert [p.name for p in folder.iterdir()] == ["m-Q4_K_M.gguf"]
        assert stand_ins.told()[0]["words"] == ["base.gguf", "model.gguf", "Q4_K_M", "3"]
        assert left(folder.parent) == []

    def test_the_models_own_type_is_the_base(self, stand_ins: StandIns, tmp_path: Path) -> None:
        folder = quantized(stand_ins, tmp_path, "bf16")
        assert (folder / "m-BF16.gguf").samefile(tmp_path / "base.gguf")
        assert stand_ins.told() == []

    def test_importance_is_for_types_that_round(self, stand_ins: StandIns, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("words")
        matrix = tmp_path / "imatrix.gguf"
        measure_importance(
            LlamaCpp(stand_ins.folder), tmp_path / "base.gguf", tmp_path / "text", 2, matrix
        )
        assert matrix.read_text() == "words"
        for kind in ("q8_0", "f16"):
            quantized(stand_ins, tmp_path, kind, imatrix=matrix)
        rounded, plain = stand_ins.told()[1:]
        assert rounded["words"][:2] == ["--imatrix", "imatrix.gguf"]
        assert plain["words"][0] == "base.gguf"

    def test_large_files_are_split(self, stand_ins: StandIns, tmp_path: Path) -> None:
        folder = quantized(stand_ins, tmp_path, "q8_0", split=300)
        names = ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]
        assert sorted(p.name for p in folder.iterdir()) == names

    def test_an_earlier_folder_stays_until_the_new_one_is_whole(
        self, stand_ins: StandIns, tmp_path: Path
    ) -> None:
        folder = quantized(stand_ins, tmp_path)
        stand_ins.write("build/bin/llama-quantize", "open('model.gguf', 'w'); exit(1)")
        with pytest.raises(UserError, match="llama-quantize failed"):
            quantized(stand_ins, tmp_path)
        assert [p.name for p in folder.iterdir()] == ["m-Q4_K_M.gguf"]
        assert left(folder.parent) == []


@pytest.mark.parametrize(
    ("dtypes", "kind"),
    [(["BF16", "F32"], "bf16"), (["F32"], "f32"), (["F64"], "f32"), (["F16", "I64"], "f16")],
)
def test_plain_type_is_that_of_most_bytes(dtypes: list[str], kind: str) -> None:
    tensors = {str(i): (dtype, (64 >> i,)) for i, dtype in enumerate(dtypes)}
    description = SimpleNamespace(shards=[SimpleNamespace(tensors=tensors)])
    assert plain_type(description) == kind
