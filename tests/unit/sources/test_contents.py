"""Which files of a repository make up the model, and its table of tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.models import llama_shapes, random_tensors, save_model
from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.base.safetensors import parse_header, write_header
from shardmerge.sources.checkpoint_files import (
    model_files,
    parse_weight_map,
    tensor_table,
    weight_files,
)
from shardmerge.sources.locking import lock_folder

INDEX = "model.safetensors.index.json"


def header_of(*tensors: Any) -> Any:
    raw = write_header([(name, "F16", (2, 3)) for name in tensors], {})
    return parse_header(raw, len(raw) + 12 * len(tensors), "here")


class TestWeightFiles:
    def test_the_index_decides(self) -> None:
        names = ["a.safetensors", "b.safetensors", "consolidated.safetensors", INDEX]
        found = weight_files(names, {"x": "b.safetensors", "y": "a.safetensors"}, "o/m")
        assert found == ["a.safetensors", "b.safetensors"]

    def test_an_index_that_names_a_missing_file_is_told(self) -> None:
        with pytest.raises(UserError, match=r"names 'b\.safetensors', which is not there"):
            weight_files(["a.safetensors"], {"x": "b.safetensors"}, "o/m")

    def test_a_single_file_wins_over_its_neighbours(self) -> None:
        names = ["model.safetensors", "consolidated.safetensors", "adapter_model.safetensors"]
        assert weight_files(names, None, "o/m") == ["model.safetensors"]

    @pytest.mark.parametrize("listed", ["whole", "broken", "itself"])
    def test_a_single_file_beside_an_index_is_what_transformers_loads(
        self, tmp_path: Path, listed: str
    ) -> None:
        """Whether the index names other weights, files that are gone, or this file."""
        from shardmerge.check.load import load_model

        folder = save_model(tmp_path / "m", random_tensors(llama_shapes(2), 1), files=2)
        single = save_model(tmp_path / "n", random_tensors(llama_shapes(2), 2))
        shutil.copy(single / "model.safetensors", folder)
        if listed == "broken":
            (folder / "model-00001-of-00002.safetensors").unlink()
        if listed == "itself":
            edit = json.loads((folder / INDEX).read_text())
            edit["weight_map"] = dict.fromkeys(edit["weight_map"], "model.safetensors")
            (folder / INDEX).write_text(json.dumps(edit))
        locked = lock_folder(folder, "m", Identities(tmp_path / "cache.json"))
        assert {t.file for t in locked.tensors.values()} == {"model.safetensors"}
        said = [load_model(where, weights=True)["generated"] for where in (folder, single)]
        assert said[0] == said[1]

    def test_all_shards_without_an_index_are_a_model(self) -> None:
        names = ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]
        assert weight_files(names, None, "o/m") == sorted(names)

    def test_some_shards_are_not(self) -> None:
        with pytest.raises(UserError, match="1 of its 3 weight files"):
            weight_files(["model-00002-of-00003.safetensors"], None, "o/m")

    def test_pickles_only(self) -> None:
        with pytest.raises(UserError, match=r"only as pickles \(pytorch_model\.bin\)"):
            weight_files(["config.json", "pytorch_model.bin", "x/y.bin"], None, "o/m")

    def test_an_adapter_is_no_model(self) -> None:
        names = ["adapter_config.json", "adapter_model.safetensors"]
        with pytest.raises(UserError, match="is an adapter"):
            weight_files(names, None, "o/m")

    def test_nothing_to_load(self) -> None:
        with pytest.raises(UserError, match=r"no model\.safetensors .*it has m\.Q4\.gguf"):
            weight_files(["m.Q4.gguf", "config.json"], None, "o/m")


class TestModelFiles:
    def test_takes_texts_and_leaves_the_rest(self) -> None:
        names = [
            *("config.json", "tokenizer.model", "merges.txt", "LICENSE.txt", "USE_POLICY.md"),
            *("chat_template.jinja", "additional_chat_templates/tools.jinja", INDEX),
            *(".gitattributes", "README.md", "picture.png", "pytorch_model.bin", "model.gguf"),
            *("original/params.json", "pytorch_model.bin.index.json", "modeling.py"),
            *("model.safetensors", "consolidated.safetensors"),
        ]
        assert model_files(names, ["model.safetensors"]) == sorted(
            [*names[:8], "model.safetensors"]
        )


class TestWeightMap:
    @pytest.mark.parametrize("index", [None, [], {}, {"weight_map": {}}, {"weight_map": ["a"]}])
    def test_not_an_index(self, index: dict[str, Any] | list[Any] | None) -> None:
        with pytest.raises(UserError, match="without a weight_map"):
            parse_weight_map(index, "o/m")

    def test_rows_are_in_the_order_of_tensors(self) -> None:
        """As well where a name is not plain, so that each row is looked at by itself."""
        for names in (["b", "a.9", "a.10"], ["b", "a é", "a.10"]):
            table = {name: f"{len(name)}.safetensors" for name in names}
            found = parse_weight_map({"weight_map": table}, "o/m")
            assert found == table
            assert [*found] == sorted(names)

    @pytest.mark.parametrize(
        ("row", "line"), [({"b": "../x"}, 4), ({"b": 3}, 4), ({"b": ["x"]}, 4), ({"b\n": "x"}, 4)]
    )
    def test_one_row_of_many(self, row: dict[str, Any], line: int) -> None:
        table = {"a": "x", **row, "c": "x"}
        text = json.dumps({"weight_map": table}, indent=1)
        with pytest.raises(UserError, match=f"^o/m/{INDEX}:{line}: names a"):
            parse_weight_map({"weight_map": table}, "o/m", text=text)

    @pytest.mark.parametrize("file", ["../x", "/etc/passwd", "a\\b", "", 3, None, "a/../../b"])
    def test_files_outside_the_model(self, file: int | str | None) -> None:
        with pytest.raises(UserError, match="not a plain path"):
            parse_weight_map({"weight_map": {"t": file}}, "o/m")


class TestTensorTable:
    def test_tensors_are_in_the_order_of_their_file_and_carry_their_range(self) -> None:
        header = header_of("b", "a")
        table = tensor_table({"f": header}, None, "o/m")
        assert list(table) == ["b", "a"]
        assert (table["b"].begin, table["b"].end) == (header.size, header.size + 12)
        assert table["a"].shape == (2, 3)

    def test_a_tensor_twice(self) -> None:
        with pytest.raises(UserError, match="tensor 'a' both in f and in g"):
            tensor_table({"f": header_of("a"), "g": header_of("a")}, None, "o/m")

    def test_the_index_chooses_between_two(self) -> None:
        headers = {"f": header_of("a"), "g": header_of("a", "b")}
        table = tensor_table(headers, {"a": "g"}, "o/m")
        assert list(table) == ["a"]
        assert table["a"].file == "g"

    def test_the_index_names_a_tensor_that_is_not_there(self) -> None:
        with pytest.raises(UserError, match="puts 'z' into f, which lacks it"):
            tensor_table({"f": header_of("a")}, {"a": "f", "z": "f"}, "o/m")
