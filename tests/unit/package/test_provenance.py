"""Provenance: complete, the same wherever it is written, and silent about the machine."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.built_model import VERIFIED, Built, build_model, changed
from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.package.index import load_records
from shardmerge.package.provenance import make_provenance, tool_versions
from shardmerge.plan.records import VerifyRecord
from shardmerge.recipe.naming import public_names

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("provenance"))
        yield build_model()


def provenance(built: Any, records: Any = None, **changes: Any) -> Any:
    files = [built.folder / name for name in built.build.files]
    return make_provenance(
        built.build.digest,
        changed(built.description, **changes),
        load_records(built.records()) if records is None else records,
        forms.read(VerifyRecord, VERIFIED),
        built.folder,
        files,
    )


class TestProvenance:
    def test_every_output_with_its_hash(self, built: Built) -> None:
        outputs = provenance(built)["outputs"]
        names = [*built.build.files, *(Path(j.output).name for j in built.build.shards)]
        assert sorted(outputs) == sorted(names)
        for name in names:
            path = built.folder / name
            line = subprocess.run(["sha256sum", path], capture_output=True, text=True).stdout
            assert outputs[name]["sha256"] == line.split()[0]
            assert outputs[name]["size"] == path.stat().st_size

    def test_seeds_where_a_method_chooses_at_random(self, built: Built) -> None:
        assert "seeds" not in provenance(built)
        assert provenance(built, seeds={"stage": [3]})["seeds"] == {"stage": [3]}

    def test_what_jobs_made_of_which_texts(self, built: Built) -> None:
        assert not {"made_sources", "texts"} & provenance(built).keys()
        sha256, other = "0" * 64, "1" * 64
        made = [
            {
                "kind": "grams",
                "digest": digit * 64,
                "files": [["lab/long", "config.json", f"sha256:{sha256}"]],
                "text": [f"/srv/someone/{folder}/t.txt", content],
            }
            for digit, folder, content in (("a", "x", sha256), ("b", "y", other))
        ]
        rows = {"kind": "transplant", "digest": "c" * 64, "files": made[0]["files"]}
        found = provenance(built, made=[*made, rows])
        assert found["texts"] == {"t.txt": {"sha256": sha256}, "t.txt (2)": {"sha256": other}}
        first, second, third = found["made_sources"]
        assert first == {
            "kind": "grams",
            "digest": "a" * 64,
            "files": {"lab/long": {"config.json": f"sha256:{sha256}"}},
            "text": "t.txt",
        }
        assert second["text"] == "t.txt (2)" and "text" not in third
        assert "someone" not in json.dumps(found)

    def test_what_went_in(self, built: Built) -> None:
        found = provenance(built)
        assert found["build"] == built.build.digest
        assert list(found["sources"]) == list(built.description.sources)
        for name, source in found["sources"].items():
            assert source["kind"] == "local"
            config = Path("models", name, "config.json")
            line = subprocess.run(["sha256sum", config], capture_output=True, text=True).stdout
            assert source["files"]["config.json"] == f"sha256:{line.split()[0]}"
        assert [stage["method"] for stage in found["recipe"]["stages"]] == [
            "task_arithmetic",
            "linear",
        ]
        assert found["tools"].keys() >= {"python", "shardmerge", "torch", "safetensors"}
        told = found["verified"]
        assert (told["passed"], told["elements"], told["hashed"]) == (True, 4321, 3)
        assert "name" not in told and "source_sha256" not in told

    def test_timings_change_nothing(self, built: Built) -> None:
        records = load_records(built.records())
        slower = {
            name: replace(record, seconds={"total": 99.0}, peak_memory=7, bytes_read=1)
            for name, record in records.items()
        }
        assert provenance(built, records) == provenance(built, slower)

    def test_missing_record(self, built: Built) -> None:
        with pytest.raises(UserError, match="no record"):
            provenance(built, {})

    def test_says_nothing_of_the_machine(self, built: Built) -> None:
        folder = "/srv/someone/models/tuned"
        sources = {
            folder: {"kind": "local", "files": {}},
            "lab/long": {"kind": "local", "files": {}},
        }
        recipe = {"file": "/srv/someone/recipes/r.yaml", "text": built.description.recipe.text}
        found = provenance(built, sources=sources, recipe=recipe, reference=folder)
        text = json.dumps(found)
        for word in ("/srv", "someone", socket.gethostname(), str(Path.cwd())):
            assert word not in text
        assert f'"{getpass.getuser()}"' not in text
        assert found["reference"] == "tuned"
        assert found["recipe"]["file"] == "r.yaml"

    def test_same_bytes_elsewhere(self, built: Built, tmp_path: Path) -> None:
        """The command line, in two folders and under two hash seeds."""
        written = []
        for seed in ("1", "2"):
            place = tmp_path / seed
            shutil.copytree(Path.cwd(), place)
            model = Path("results/merged/model")
            (place / "verify.json").write_text(json.dumps(VERIFIED))
            command = [sys.executable, SCRIPTS / "write_provenance.py"]
            command += ["--build", built.build.digest, "--records", *built.records()]
            command += ["--verify", "verify.json", "--files", model / "config.json"]
            command += ["--output", model / "provenance.json"]
            subprocess.run(command, cwd=place, check=True, env={"PYTHONHASHSEED": seed})
            written.append((place / model / "provenance.json").read_bytes())
        assert written[0] == written[1]


class TestPublicNames:
    @pytest.mark.parametrize(
        ("reference", "name"),
        [
            ("owner/name", "owner/name"),
            ("owner/name@main", "owner/name@main"),
            ("resources/demo/x", "resources/demo/x"),
            ("/data/models/x", "x"),
            ("/data/models/x/", "x"),
            ("~/x", "x"),
            ("../x", "x"),
            ("./x", "x"),
            ("C:\\models\\x", "x"),
            ("/", "folder"),
            ("..", "folder"),
        ],
    )
    def test_names(self, reference: str, name: str) -> None:
        assert public_names([reference]) == {reference: name}

    def test_stay_different(self) -> None:
        names = public_names(["/a/x", "/b/x", "x", "/c/x"])
        assert list(names.values()) == ["x", "x (2)", "x (3)", "x (4)"]


class TestTools:
    def test_versions(self) -> None:
        versions = tool_versions()
        assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
        import torch

        assert versions["torch"] == torch.__version__
