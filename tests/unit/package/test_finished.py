"""A finished model's folder is checked by what lies in it alone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of, write_json
from shardmerge.base.hashing import sums_text
from shardmerge.command.verifying import verify
from shardmerge.export.package import export_provenance
from shardmerge.export.record import ExportRecord
from shardmerge.export.registry import form_of
from shardmerge.package.finished import check_finished
from shardmerge.package.index import checksums

FILES = {"model.safetensors": b"weights", "config.json": b"{}", "odd\\na\nme.txt": b"text"}
EXPORTED = {
    "form": "gguf",
    "variant": "q8_0",
    "build": "b" * 64,
    "tensors": {},
    "bits_per_weight": 8.5,
    "metadata": {},
    "errors": {"compared": 0, "rows": 0, "median": 0.0, "largest": 0.0, "tensors": {}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "model"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    outputs = {n: {"sha256": hashlib.sha256(c).hexdigest()} for n, c in FILES.items()}
    (folder / "provenance.json").write_text(json.dumps({"outputs": outputs}))
    # provenance tells nothing of the card
    (folder / "README.md").write_text("card")
    (folder / "coefficients.svg").write_text("picture")
    card = ("README.md", "coefficients.svg")
    paths = [folder / name for name in (*FILES, *card, "provenance.json")]
    (folder / "SHA256SUMS").write_text(checksums(folder, paths, {}))
    return folder


def test_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del_odd(folder)
    found = check_finished(folder)
    assert found.wrong == () and len(found.files) == 5
    verify(str(folder.parent))
    told = capsys.readouterr().out
    assert "5 files" in told and "signature: none" in told


def del_odd(folder: Path) -> None:
    """Leave out the file whose name no source may have."""
    odd = next(name for name in FILES if "odd" in name)
    sums = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    told = json.loads((folder / "provenance.json").read_text())
    del told["outputs"][odd]
    (folder / "provenance.json").write_text(json.dumps(told))
    (folder / odd).unlink()
    sha256 = hashlib.sha256((folder / "provenance.json").read_bytes()).hexdigest()
    kept = [line for line in sums if "odd" not in line and "provenance" not in line]
    (folder / "SHA256SUMS").write_text("".join([*kept, f"{sha256}  provenance.json\n"]))


def test_a_name_that_does_not_show_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="names a file"):
        check_finished(folder)


class TestDamage:
    @pytest.fixture(autouse=True)
    def plain(self, folder: Path) -> None:
        del_odd(folder)

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "provenance.json"])
    def test_changed_or_missing(self, folder: Path, name: str) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes().replace(b"{", b"{ ").replace(b"w", b"v"))
        assert any(f"{name} has the SHA-256" in line for line in check_finished(folder).wrong)
        path.unlink()
        assert any(f"{name} is missing" in line for line in check_finished(folder).wrong)

    def test_lists_that_differ(self, folder: Path) -> None:
        """Who changes a file and its checksum has the provenance against them."""
        (folder / "config.json").write_bytes(b"[]")
        sums = (folder / "SHA256SUMS").read_text()
        old, new = (hashlib.sha256(c).hexdigest() for c in (b"{}", b"[]"))
        (folder / "SHA256SUMS").write_text(sums.replace(old, new))
        wrong = check_finished(folder).wrong
        assert wrong == ("config.json has another SHA-256 in provenance.json than in SHA256SUMS",)

    def test_weights_of_another_model(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "notes.txt").write_text("mine")
        assert check_finished(folder).others == ("notes.txt",)
        (folder / "model-00009-of-00009.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match="is not part of it, and a loader may take it"):
            verify(str(folder))

    @pytest.mark.parametrize("line", ["x  y", f"{'0' * 64}  ../up", f"{'0' * 64} *config.json"])
    def test_lines_that_are_none(self, folder: Path, line: str) -> None:
        with (folder / "SHA256SUMS").open("a") as file:
            file.write(f"{line}\n")
        with pytest.raises(UserError):
            check_finished(folder)

    @pytest.mark.parametrize("kind", ["file", "folder", "listed", "provenance.json", "SHA256SUMS"])
    def test_links_that_lead_out(self, folder: Path, tmp_path: Path, kind: str) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret.json").write_text("a secret")
        name = {"file": "tokenizer.json", "folder": "templates", "listed": "config.json"}
        link = folder / name.get(kind, kind)
        link.unlink(missing_ok=True)
        link.symlink_to(outside if kind == "folder" else outside / "secret.json")
        with pytest.raises(UserError, match="link") as caught:
            verify(str(folder))
        assert "a secret" not in str(caught.value)

    def test_what_is_no_plain_file(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")
        assert "config.json is no plain file" in check_finished(folder).wrong

    @pytest.mark.parametrize("name", ["modeling.py", "tokenizer.json", "x/chat.jinja", "a\n.json"])
    def test_what_a_loader_may_take(self, folder: Path, name: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        with pytest.raises(UserError, match="a loader may take it") as caught:
            verify(str(folder))
        assert "\n" not in str(caught.value).partition("\n  Copy")[0]

    def test_what_the_hub_and_its_client_add_is_no_fault(self, folder: Path) -> None:
        (folder / ".cache" / "huggingface").mkdir(parents=True)
        (folder / ".cache" / "huggingface" / "config.json").touch()
        (folder / ".gitattributes").touch()
        found = check_finished(folder)
        assert found.others == found.wrong == ()

    def test_a_huge_or_deep_provenance_is_refused(self, folder: Path) -> None:
        for text in ("[" * 100_000, '{"outputs": ' * 300 + "{}" + "}" * 300):
            (folder / "provenance.json").write_text(text)
            with pytest.raises(UserError):
                verify(str(folder))

    def test_another_recipe(self, folder: Path) -> None:
        told = json.loads((folder / "provenance.json").read_text())
        (folder / "mergekit_config.yml").write_text("x: 1")
        sha256 = sha256_of(folder / "mergekit_config.yml")
        told["outputs"]["mergekit_config.yml"] = {"sha256": sha256}
        (folder / "provenance.json").write_text(json.dumps(told | {"recipe": {"sha256": "0" * 64}}))
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {line[66:]: line[:64] for line in lines}
        sums |= {n: sha256_of(folder / n) for n in ("mergekit_config.yml", "provenance.json")}
        (folder / "SHA256SUMS").write_text(sums_text(sums))
        (wrong,) = check_finished(folder).wrong
        assert wrong == "mergekit_config.yml is another recipe than provenance.json tells of"

    def test_no_checksums(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="has no SHA256SUMS"):
            verify(str(tmp_path))


def finish(folder: Path, name: str, outputs: dict[str, Any]) -> None:
    """Make a folder of one file of weights, with a provenance that says so."""
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"weights")
    write_json(folder / "provenance.json", outputs)
    paths = [folder / "provenance.json", folder / name]
    lines = {p.relative_to(folder).as_posix(): sha256_of(p) for p in paths}
    (folder / "SHA256SUMS").write_text(sums_text(lines))


class TestOtherPackages:
    @pytest.fixture
    def result(self, tmp_path: Path) -> Path:
        sha256 = hashlib.sha256(b"weights").hexdigest()
        told = {"outputs": {"adapter_model.safetensors": {"sha256": sha256}}}
        finish(tmp_path / "adapter", "adapter_model.safetensors", told)
        file = {"m.gguf": {"sha256": sha256, "size": 7}}
        one = forms.read(ExportRecord, EXPORTED | {"files": file})
        told = export_provenance(form_of("gguf"), "m", [one], "a" * 64)
        finish(tmp_path / "exports" / "gguf", "q8_0/m.gguf", told)
        return tmp_path

    def test_all_of_a_result_are_checked(
        self, result: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        verify(str(result))
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if not line.startswith("  ")] == [
            f"{result / 'adapter'}:",
            f"{result / 'exports' / 'gguf'}:",
        ]
        assert sum("checksums: 2 files" in line for line in lines) == 2
        assert "from the model of build" in lines[-2]

    def test_an_export_of_another_model_beside_it(self, result: Path) -> None:
        (result / "model").mkdir()
        (result / "model" / "provenance.json").write_text("{}")
        with pytest.raises(UserError, match="an export of another model"):
            verify(str(result / "exports" / "gguf"))

    def test_an_export_that_is_damaged(self, result: Path) -> None:
        folder = result / "exports" / "gguf"
        (folder / "q8_0" / "other.gguf").touch()
        with pytest.raises(UserError, match=r"other\.gguf is not part of it"):
            verify(str(folder))
        (folder / "q8_0" / "m.gguf").write_bytes(b"others")
        with pytest.raises(UserError, match=r"m\.gguf has the SHA-256"):
            verify(str(result))
