"""An export as a package: its card, its provenance, what of it is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import write_json
from shardmerge.base.hashing import sums_text
from shardmerge.export import package
from shardmerge.export.record import ExportRecord, load_export
from shardmerge.export.registry import EXPORT_FORMS, form_of
from shardmerge.package.uploads import list_export

BUILD, SHA = "b" * 64, "a" * 64
DATA = {
    "form": "gguf",
    "variant": "q4_k_m",
    "build": BUILD,
    "files": {"m-Q4_K_M.gguf": {"sha256": SHA, "size": 5_000_000}},
    "tensors": {"export": 3, "model": 3},
    "bits_per_weight": 4.5,
    "metadata": {"llama.context_length": "4096"},
    "errors": {
        "compared": 2,
        "rows": 256,
        "median": 0.0712,
        "largest": 0.1,
        "tensors": {"x": 0.0712},
        "not_compared": {"rope_freqs.weight": "made from the configuration"},
    },
    "tools": {"llama.cpp": "7 `x`"},
}


def record(**changes: Any) -> ExportRecord:
    return forms.read(ExportRecord, DATA | changes)


class TestRecord:
    def test_round_trip(self, tmp_path: Path) -> None:
        write_json(tmp_path / "r.json", forms.written(record()))
        assert load_export(tmp_path / "r.json") == record()
        assert record().size == 5_000_000

    def test_damaged(self, tmp_path: Path) -> None:
        write_json(tmp_path / "r.json", DATA | {"files": {"x": {"sha256": "1", "size": 1}}})
        with pytest.raises(UserError, match="is not what a check of an export writes"):
            load_export(tmp_path / "r.json")

    def test_of_an_earlier_model(self) -> None:
        package.check_same_model([record()], BUILD)
        with pytest.raises(UserError, match="earlier model"):
            package.check_same_model([record()], SHA)


class TestCard:
    def card(self, *repositories: str, **settings: Any) -> str:
        return package.export_card(form_of("gguf"), "m", settings, [record()], *repositories)

    def test_names_the_model_that_it_is_made_from(self) -> None:
        text = self.card("me/m", "me/m-GGUF", license="mit")
        head = text.split("---")[1]
        assert "base_model: me/m\n" in head and "base_model_relation: quantized" in head
        assert "license: mit" in head and "library_name: gguf" in head
        assert "| `m-Q4_K_M.gguf` | 5.00 MB | 4.50 | 0.071 |" in text
        assert "llama-cli -m q4_k_m/m-Q4_K_M.gguf" in text
        assert "1 others have no counterpart" in text and "`` 7 `x` ``" in text

    def test_without_repositories(self) -> None:
        assert "base_model" not in self.card()

    def test_takes_what_the_models_card_says(self) -> None:
        text = self.card(description="What it is.", prompt_format="Ask.", tags=["x"])
        assert "What it is.\n" in text and "## Prompt format\n\nAsk.\n" in text and "- x\n" in text

    def test_provenance_has_all_records(self) -> None:
        told = package.export_provenance(form_of("gguf"), "m", [record()], SHA)
        assert told["model"] == {"build": BUILD, "provenance_sha256": SHA}
        assert told["variants"]["q4_k_m"]["errors"]["tensors"] == {"x": 0.0712}


class TestMirrors:
    """A form whose package is a model: its files are in the package itself."""

    RECORD: ClassVar[dict[str, Any]] = {
        "form": "w4a16",
        "variant": "w4a16",
        "files": {"model.safetensors": {"sha256": SHA, "size": 5_000_000}},
        "errors": {
            "compared": 5,
            "rows": None,
            "median": 0.0712,
            "largest": 0.1,
            "tensors": {"x.weight": 0.0712},
            "farthest": {"x.weight": 0.5},
        },
        "kept": {"lm_head.weight": "ignored"},
        "tools": {"compressed-tensors": "1.2"},
    }

    def test_round_trip(self, tmp_path: Path) -> None:
        write_json(tmp_path / "r.json", forms.written(record(**self.RECORD)))
        assert load_export(tmp_path / "r.json") == record(**self.RECORD)

    def test_files_lie_in_the_package(self) -> None:
        form = form_of("w4a16")
        assert package.export_files(form, [record(**self.RECORD)]) == {"model.safetensors": SHA}
        assert list(package.export_files(form_of("gguf"), [record()])) == ["q4_k_m/m-Q4_K_M.gguf"]

    def test_card(self) -> None:
        found = [record(**self.RECORD)]
        text = package.export_card(form_of("w4a16"), "m", {}, found, "me/m", "me/m-W4A16")
        head = text.split("---")[1]
        assert "base_model: me/m\n" in head and "base_model_relation: quantized" in head
        assert "vllm serve me/m-W4A16" in text and "Nothing was calibrated" in text
        assert "compared with the model, all their values." in text


def test_forms_have_names_of_their_own() -> None:
    assert (
        len({form.name for form in EXPORT_FORMS})
        == len({form.title for form in EXPORT_FORMS})
        == len(EXPORT_FORMS)
    )


class TestUploads:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "q4_k_m").mkdir()
        for name in ("q4_k_m/m-Q4_K_M.gguf", "README.md", "provenance.json", "notes.txt"):
            (tmp_path / name).write_text("x")
        (tmp_path / "q4_k_m" / ".snakemake_timestamp").touch()
        self.write(tmp_path, "README.md", "provenance.json", "q4_k_m/m-Q4_K_M.gguf")
        return tmp_path

    def write(self, folder: Path, *names: str) -> None:
        (folder / "SHA256SUMS").write_text(sums_text(dict.fromkeys(names, SHA)))

    def test_what_the_checksums_list(self, folder: Path) -> None:
        uploads, left_out = list_export(folder)
        assert [u.name for u in uploads] == [
            *("README.md", "SHA256SUMS", "provenance.json", "q4_k_m/m-Q4_K_M.gguf")
        ]
        assert left_out == []

    @pytest.mark.parametrize(
        "name", ["../x.gguf", "/etc/x.json", "a/b/c.gguf", ".env", "q4_k_m/x.sh", "x.log", "a.part"]
    )
    def test_what_exports_do_not_have(self, folder: Path, name: str) -> None:
        self.write(folder, name)
        with pytest.raises(UserError, match="no kind of file that goes up"):
            list_export(folder)

    def test_what_is_missing(self, folder: Path) -> None:
        (folder / "q4_k_m" / "m-Q4_K_M.gguf").unlink()
        with pytest.raises(UserError, match="is not there"):
            list_export(folder)

    @pytest.mark.parametrize("name", ["LICENSE", "LICENSE.txt", "qwen.tiktoken", "NOTICE"])
    def test_what_a_model_has_beside_its_weights(self, folder: Path, name: str) -> None:
        (folder / name).write_text("x")
        self.write(folder, name)
        assert name in [upload.name for upload in list_export(folder)[0]]

    @pytest.mark.parametrize("link", ["q4_k_m", "q4_k_m/m-Q4_K_M.gguf"])
    def test_links(self, folder: Path, link: str) -> None:
        (folder / link).rename(folder / "elsewhere")
        (folder / link).symlink_to(folder / "elsewhere")
        with pytest.raises(UserError, match="is a link"):
            list_export(folder)
