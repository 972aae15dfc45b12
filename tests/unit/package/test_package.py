"""config.json, index and checksums of a package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import write_checksums
import write_config
import write_index
from helpers.built_model import RECIPE, Built, build_model
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.package.config import remove_keys, set_dtype, set_values
from shardmerge.package.index import checksums, load_records, make_index, replace_text


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("package"))
        yield build_model()


def run(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


class TestDtype:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ('{\n  "torch_dtype": "bfloat16"\n}\n', '{\n  "torch_dtype": "float16"\n}\n'),
            ('{"dtype" :  null , "b": 1e-5}', '{"dtype" :  "float16" , "b": 1e-5}'),
            ('{\n\t"a": 1\n}', '{\n\t"a": 1,\n\t"dtype": "float16"\n}'),
            ('{\r\n "a": {"dtype": "x"}}', '{\r\n "a": {"dtype": "x"},\r\n "dtype": "float16"}'),
            ("{}", '{"dtype": "float16"}'),
            ('{"a": "é\\u00e9", "dtype": "x"}\n\n', '{"a": "é\\u00e9", "dtype": "float16"}\n\n'),
            (
                '{"dtype": "a", "x": [1, {"y": "}"}], "torch_dtype": "b"}',
                '{"dtype": "float16", "x": [1, {"y": "}"}], "torch_dtype": "float16"}',
            ),
        ],
    )
    def test_nothing_else_changes(self, before: str, after: str) -> None:
        assert set_dtype(before, "float16", "c") == after
        expected = json.loads(before)
        keys = {"dtype", "torch_dtype"} & expected.keys() or {"dtype"}
        assert json.loads(after) == expected | dict.fromkeys(keys, "float16")

    def test_without_a_dtype(self) -> None:
        assert set_dtype('{"dtype": "x"}', None, "c") == '{"dtype": "x"}'

    @pytest.mark.parametrize("text", ["[]", "{", "", '"a"', "{" * 5000])
    def test_not_an_object(self, text: str) -> None:
        with pytest.raises(UserError, match=r"config\.json: is not"):
            set_dtype(text, "float16", "config.json")

    def test_values_at_their_places(self) -> None:
        before = (
            '{\n  "a": [\n    1,\n    2\n  ],\n  "text_config": {"n": 1, "x": 0},\n  "n": 3\n}\n'
        )
        after = set_values(
            before, {"a": [3, 4, 5], "text_config.n": 2, "text_config.m": "w", "n": 4}, "c"
        )
        assert after == (
            '{\n  "a": [\n    3,\n    4,\n    5\n  ],\n'
            '  "text_config": {"n": 2, "x": 0,"m": "w"},\n  "n": 4\n}\n'
        )

    def test_value_of_an_object_that_is_not_there(self) -> None:
        with pytest.raises(UserError, match="no object 'text_config'"):
            set_values('{"text_config": 1}', {"text_config.n": 2}, "c")

    def test_command(self, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = tmp_path / "source.json"
        source.write_bytes(b'{\r\n    "torch_dtype": "bfloat16",\r\n    "x": 1.0\r\n}')
        config, recipe = tmp_path / "config.json", tmp_path / "mergekit_config.yml"
        arguments = ["--source", source, "--output", config, "--recipe", recipe]
        run(monkeypatch, write_config, "--build", built.build.digest, *arguments)
        expected = b'{\r\n    "torch_dtype": "float16",\r\n    "x": 1.0\r\n}'
        assert config.read_bytes() == expected
        assert recipe.read_text() == RECIPE


class TestRemoval:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ('{"q": {"a": [1, "}"]}, "b": 1}', '{ "b": 1}'),
            ('{\n  "a": 1,\n  "q": {}\n}\n', '{\n  "a": 1\n}\n'),
            ('{"a": 1 , "q": 2, "b": 3}', '{"a": 1, "b": 3}'),
            ('{ "q": 1 }', "{ }"),
            ('{"q": 1, "q": 2}', "{}"),
            ('{"b": 1e-5}', '{"b": 1e-5}'),
        ],
    )
    def test_nothing_else_changes(self, before: str, after: str) -> None:
        assert remove_keys(before, ["q"], "c") == after
        assert json.loads(after) == {k: v for k, v in json.loads(before).items() if k != "q"}

    def test_below_another_key(self) -> None:
        text = remove_keys('{"q": 1, "t": {"q": 1, "b": 2}}', ["t.q"], "c")
        assert json.loads(text) == {"q": 1, "t": {"b": 2}}


class TestIndex:
    def test_as_transformers_writes_it(
        self, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from safetensors.torch import load_file

        path = tmp_path / "index.json"
        arguments = ("--build", built.build.digest, "--stem", "model", "--output", path)
        run(monkeypatch, write_index, *arguments)
        index = json.loads(path.read_text())
        assert path.read_text() == json.dumps(index, indent=2, sort_keys=True) + "\n"
        shards = {Path(j.output).name: load_file(j.output) for j in built.build.shards}
        tensors = {name: file for file, content in shards.items() for name in content}
        assert index["weight_map"] == tensors
        assert list(index["weight_map"]) == sorted(tensors)
        size = sum(t.nbytes for content in shards.values() for t in content.values())
        assert index["metadata"]["total_size"] == size

    def test_is_pure(self, built: Built) -> None:
        assert make_index(built.description) == make_index(built.description)


class TestChecksums:
    def verify(self, folder: Path) -> subprocess.CompletedProcess:
        command = ["sha256sum", "--strict", "--check", "SHA256SUMS"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    def test_sha256sum_agrees(self, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = built.folder
        files = [folder / name for name in built.build.files]
        arguments = ["--files", *files, "--records", *built.records()]
        run(monkeypatch, write_checksums, *arguments, "--output", folder / "SHA256SUMS")
        names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
        shards = [Path(job.output).name for job in built.build.shards]
        assert names == sorted([*built.build.files, *shards])
        assert self.verify(folder).returncode == 0
        path = Path(built.build.shards[0].output)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert f"{path.name}: FAILED" in self.verify(folder).stdout
        path.write_bytes(data)

    def test_odd_names(self, tmp_path: Path) -> None:
        names = ["a b", "c\\d", "e\nf", "sub/g", "é", "-h"]
        (tmp_path / "sub").mkdir()
        for name in names:
            (tmp_path / name).write_text(name)
        text = checksums(tmp_path, [tmp_path / name for name in names], {})
        (tmp_path / "SHA256SUMS").write_text(text)
        assert self.verify(tmp_path).returncode == 0, self.verify(tmp_path)
        assert len(text.splitlines()) == len(names)

    def test_shards_are_not_read(self, tmp_path: Path) -> None:
        record = tmp_path / "records" / "model.json"
        record.parent.mkdir()
        record.write_text(json.dumps({"sha256": "0" * 64, "size": 1}))
        text = checksums(tmp_path, [tmp_path / "model.safetensors"], load_records([record]))
        assert text == f"{'0' * 64}  model.safetensors\n"

    def test_a_card_that_changes_later(self, tmp_path: Path) -> None:
        """The checksums hold before and after, and are the younger file."""
        for name in ("README.md", "a", "not-README.md"):
            (tmp_path / name).write_text(name)
        sums = tmp_path / "SHA256SUMS"
        sums.write_text(checksums(tmp_path, sorted(tmp_path.iterdir()), {}))
        replace_text(tmp_path / "README.md", "another")
        assert (tmp_path / "README.md").read_text() == "another"
        assert self.verify(tmp_path).returncode == 0
        assert len(sums.read_text().splitlines()) == 3
        assert sums.stat().st_mtime_ns >= (tmp_path / "README.md").stat().st_mtime_ns
        sums.write_text(f"{'0' * 64}  a\n")
        with pytest.raises(UserError, match=r"does not list README\.md"):
            replace_text(tmp_path / "README.md", "x")
        assert (tmp_path / "README.md").read_text() == "another"
        assert not list(tmp_path.glob(".*"))

    def test_provenance_tells_all_but_the_card(self, tmp_path: Path) -> None:
        for name in ("README.md", "a"):
            (tmp_path / name).write_text(name)
        outputs = {"a": {"sha256": sha256_of(tmp_path / "a")}}
        (tmp_path / "provenance.json").write_text(json.dumps({"outputs": outputs}))
        files = sorted(tmp_path.iterdir())
        assert "README.md" in checksums(tmp_path, files, {})
        (tmp_path / "a").write_text("changed")
        with pytest.raises(UserError, match="tells another SHA-256"):
            checksums(tmp_path, files, {})

    def test_file_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").write_text("x")
        with pytest.raises(UserError, match="does not lie in"):
            checksums(tmp_path / "a", [tmp_path / "b"], {})

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be read"):
            checksums(tmp_path, [tmp_path / "b"], {})

    @pytest.mark.parametrize("content", ["{}", '{"sha256": "x", "size": 1}', "[]", "{"])
    def test_broken_record(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(UserError, match=r"r\.json"):
            load_records([tmp_path / "r.json"])
