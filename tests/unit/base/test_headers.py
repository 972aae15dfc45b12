"""safetensors headers: what the library writes is read; what is hostile is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shardmerge.base.dtypes import DTYPES, tensor_bytes
from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import parse_header, read_header, write_header


def file_of(tmp_path: Path, table: Any, data: Any = b"\0" * 64, length: Any = None) -> Any:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path = tmp_path / "x.safetensors"
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def row(begin: Any = 0, end: Any = 8, dtype: Any = "F16", shape: Any = (4,)) -> dict[Any, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


class TestRoundTrip:
    def test_same_bytes_as_the_library(self, tmp_path: Path) -> None:
        tensors = {"b": torch.ones(2, 3), "a": torch.ones(5, dtype=torch.float16)}
        save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
        header = read_header(tmp_path / "x.safetensors")
        rows = [(n, e.dtype, e.shape) for n, e in header.tensors.items()]
        raw = (tmp_path / "x.safetensors").read_bytes()[: header.size]
        assert write_header(rows, {"format": "pt"}) == raw

    def test_odd_names(self, tmp_path: Path) -> None:
        raw = write_header([('quote " and \\', "F32", ()), ("ü", "I8", (0,))], {})
        assert list(parse_header(raw, len(raw) + 4, "x").tensors) == ['quote " and \\', "ü"]

    @pytest.mark.parametrize(
        ("dtype", "code", "shape"),
        [
            (torch.float8_e8m0fnu, "F8_E8M0", (4, 8)),
            (torch.float8_e4m3fnuz, "F8_E4M3FNUZ", (4, 8)),
            (torch.float8_e5m2fnuz, "F8_E5M2FNUZ", (4, 8)),
            (torch.float4_e2m1fn_x2, "F4", (4, 16)),
        ],
    )
    def test_small_types(
        self, tmp_path: Path, dtype: Any, code: str, shape: tuple[Any, ...]
    ) -> None:
        save_file({"w": torch.ones(4, 8, dtype=torch.uint8).view(dtype)}, tmp_path / "x")
        entry = read_header(tmp_path / "x").tensors["w"]
        assert (entry.dtype, entry.shape, entry.end - entry.begin) == (code, shape, 32)

    @pytest.mark.parametrize("code", sorted(DTYPES))
    def test_every_type_is_the_librarys(self, tmp_path: Path, code: str) -> None:
        raw = write_header([("w", code, (2, 8))], {})
        (tmp_path / "x").write_bytes(raw + b"\0" * tensor_bytes(code, (2, 8)))
        with safe_open(tmp_path / "x", "np") as file:
            assert file.get_slice("w").get_dtype() == code
        assert read_header(tmp_path / "x").tensors["w"].shape == (2, 8)


class TestHostile:
    @pytest.mark.parametrize(
        ("table", "says"),
        [
            (b"{", "not JSON"),
            (b"[]", "not a table"),
            ({"a": row(), "b": row(4, 12)}, "overlapping"),
            ({"a": row(60, 68)}, "cut off"),
            ({"a": row(0, 6)}, "needs"),
            ({"a": row(-8, 0)}, "whole numbers"),
            ({"a": row(shape=(-1,), end=8)}, "whole numbers"),
            ({"a": row(shape=(2**62, 2**62))}, "needs"),
            ({"a": row(dtype="F17")}, "unknown dtype"),
            ({"a": row(dtype="F4", shape=(3,), end=2)}, "whole bytes"),
            ({"a": {"dtype": "F16"}}, "lacks"),
            ({"a": row(shape=(4.0,))}, "whole numbers"),
            (b'{"a": 1, "a": 2}', "given twice"),
            (b'{"a":' + b"[" * 100_000, "not JSON"),
        ],
    )
    def test_refused(self, tmp_path: Path, table: bytes | dict[str, Any], says: str) -> None:
        with pytest.raises(UserError, match=says):
            read_header(file_of(tmp_path, table))

    @pytest.mark.parametrize("length", [2**63, 200_000_000, 10_000])
    def test_absurd_length(self, tmp_path: Path, length: int) -> None:
        with pytest.raises(UserError, match="header of"):
            read_header(file_of(tmp_path, {}, length=length))

    def test_a_pointer_in_place_of_a_large_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
        with pytest.raises(UserError, match=r"Git LFS pointer(?s:.*)git lfs pull"):
            read_header(path)

    def test_short_file(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"abc")
        with pytest.raises(UserError, match="too short"):
            read_header(tmp_path / "x")
