"""Formats of quantised weights: values by hand, what announces them, and what is refused."""

from __future__ import annotations

import json
import random as chance
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.format_cases import (
    Entry,
    contents_of,
    decoded,
    fp8,
    integers,
    logical_of,
    quantised,
    random,
    read,
    same,
    scheme,
    table_of,
    weight_of,
)
from helpers.format_models import BLOCKS, MODELS, STATE, state
from shardmerge import formats
from shardmerge.base.errors import UserError
from shardmerge.formats import fp8_block
from shardmerge.formats.boxes import row_spans, runs
from shardmerge.formats.interface import LogicalTensor, PartRef
from shardmerge.formats.values import CODE_TABLES, unpacked


def words(*values: int) -> torch.Tensor:
    """Return 32-bit words [rows, 1] or of the given shape as I32."""
    return torch.from_numpy(np.array(values, dtype=np.uint32).view(np.int32))


SCRIPTS = Path(__file__).parents[3] / "scripts"


class TestNumbers:
    @pytest.mark.parametrize(
        ("code", "dtype"),
        [
            ("F8_E4M3", torch.float8_e4m3fn),
            ("F8_E5M2", torch.float8_e5m2),
            ("F8_E8M0", torch.float8_e8m0fnu),
        ],
    )
    def test_tables_are_torchs(self, code: str, dtype: Any) -> None:
        every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        assert same(torch.from_numpy(CODE_TABLES[code]), every)

    @pytest.mark.parametrize("bits", range(1, 9))
    def test_a_stream_of_bits(self, bits: int) -> None:
        codes = [(7 * i + 3) % (1 << bits) for i in range(64)]
        stream = sum(code << (bits * i) for i, code in enumerate(codes))
        raw = stream.to_bytes(8 * bits, "little")
        row = np.frombuffer(raw, "<i4").reshape(1, -1)
        assert unpacked(row, bits).tolist() == [codes]


class TestByHand:
    def test_block_fp8(self) -> None:
        codes = torch.full((3, 5), 0x38, dtype=torch.uint8).view(torch.float8_e4m3fn)
        grid = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        made = weight_of(
            {"m.weight": codes, "m.weight_scale_inv": grid},
            quantised("fp8", weight_block_size=[2, 2]),
        )
        assert made.tolist() == [[1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]

    def test_fp8_of_a_tensor_and_of_rows(self) -> None:
        codes = torch.tensor([[0x38, 0x40], [0xB8, 0x7E]], dtype=torch.uint8)
        parts = {"m.weight": codes.view(torch.float8_e4m3fn)}
        whole = weight_of(parts | {"m.weight_scale": torch.tensor(0.5)}, quantised("modelopt"))
        assert whole.tolist() == [[0.5, 1], [-0.5, 224]]
        rows = torch.tensor([[0.5], [2.0]]).bfloat16()
        made = weight_of(parts | {"m.weight_scale": rows}, quantised("fbgemm_fp8"))
        assert made.tolist() == [[0.5, 1], [-2, 896]]

    def test_packed_four_bits(self) -> None:
        parts = {
            "m.weight_packed": words(0x76543210, 0xFEDCBA98).reshape(2, 1),
            "m.weight_scale": torch.tensor([[0.5, 2.0], [1.0, 1.0]]),
        }
        made = weight_of(parts, scheme(4, group_size=4))
        assert made.tolist() == [[-4, -3.5, -3, -2.5, -8, -6, -4, -2], [0, 1, 2, 3, 4, 5, 6, 7]]

    def test_packed_with_zeros_and_order(self) -> None:
        parts = {
            "m.weight_packed": words(0x76543210, 0x76543210).reshape(2, 1),
            "m.weight_scale": torch.tensor([[1.0, 10.0], [1.0, 10.0]]),
            # Zeros of row 0: 1 and 2; of row 1: 3 and 4. Two rows are in the low byte.
            "m.weight_zero_point": words(0x31, 0x42).reshape(1, 2),
            "m.weight_g_idx": torch.tensor([1, 0, 1, 0, 1, 0, 1, 0], dtype=torch.int32),
        }
        made = weight_of(parts, scheme(4, group_size=4, symmetric=False, actorder="group"))
        assert made.tolist() == [
            [-20, 0, 0, 2, 20, 4, 40, 6],
            [-40, -2, -20, 0, 0, 2, 20, 4],
        ]
        del parts["m.weight_g_idx"]
        made = weight_of(parts, scheme(4, group_size=4, symmetric=False))
        assert made[0].tolist() == [-1, 0, 1, 2, 20, 30, 40, 50]

    def test_packed_with_plain_zeros(self) -> None:
        parts = {
            "m.weight_packed": words(0x76543210).reshape(1, 1),
            "m.weight_scale": torch.tensor([[1.0, 10.0]]),
            "m.weight_zero_point": torch.tensor([[-7, -4]], dtype=torch.int8),
        }
        made = weight_of(parts, scheme(4, group_size=4, symmetric=False))
        assert made.tolist() == [[-1, 0, 1, 2, 0, 10, 20, 30]]

    @pytest.mark.parametrize(("form", "zero"), [("gptq", 8), ("gptq_v2", 7)])
    def test_gptq(self, form: str, zero: int) -> None:
        parts = {
            "m.qweight": words(*[0x76543210] * 8).reshape(1, 8),
            "m.qzeros": words(0x77777777).reshape(1, 1),
            "m.scales": torch.full((1, 8), 0.5).half(),
        }
        made = weight_of(parts, quantised("gptq", bits=4, checkpoint_format=form))
        assert made.tolist() == [[(i - zero) * 0.5 for i in range(8)]] * 8

    def test_gptq_zero_of_no_minus_one(self) -> None:
        parts = {
            "m.qweight": words(*[0x76543210] * 8).reshape(1, 8),
            "m.qzeros": words(0xFFFFFFFF).reshape(1, 1),
            "m.scales": torch.ones(1, 8).half(),
        }
        made = weight_of(parts, quantised("gptq", bits=4, group_size=-1))
        assert made[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]

    def test_awq_interleaves(self) -> None:
        parts = {
            "m.qweight": words(0x75316420, 0x75316420).reshape(2, 1),
            "m.qzeros": words(0x11111110).reshape(1, 1),
            "m.scales": torch.full((1, 8), 2.0).half(),
        }
        made = weight_of(parts, quantised("awq", bits=4, group_size=2))
        assert made[:, 0].tolist() == [0, 0, 2, 4, 6, 8, 10, 12]

    def test_int8_of_bitsandbytes(self) -> None:
        parts = {
            "m.weight": torch.tensor([[127, -127], [1, 0]], dtype=torch.int8),
            "m.SCB": torch.tensor([2.0, 127.0]),
        }
        made = weight_of(parts, quantised("bitsandbytes"))
        assert made.tolist() == [[2, -2], [1, 0]]

    def test_nf4(self) -> None:
        parts = {
            "m.weight": torch.tensor([[0x0F], [0xF7]] + [[0x77]] * 30, dtype=torch.uint8),
            "m.weight.absmax": torch.tensor([2.0]),
            STATE: state(shape=[2, 32]),
        }
        made = weight_of(parts, quantised("bitsandbytes"))
        assert made[0, :4].tolist() == [-2, 2, 2, 0] and not made[1].any()

    def test_nf4_with_scales_of_scales(self) -> None:
        table = torch.zeros(256)
        table[3], table[5] = 0.5, 1.0
        parts = {
            "m.weight": torch.full((64, 1), 0xFF, dtype=torch.uint8),
            "m.weight.absmax": torch.tensor([3, 5], dtype=torch.uint8),
            "m.weight.nested_absmax": torch.tensor([4.0]),
            "m.weight.nested_quant_map": table,
            STATE: state(nested_blocksize=256, nested_offset=0.25, nested_dtype="float32"),
        }
        made = weight_of(parts, quantised("bitsandbytes"))
        assert made[:2].unique().tolist() == [2.25] and made[2:].unique().tolist() == [4.25]

    def test_mxfp4_is_transposed(self) -> None:
        blocks = torch.zeros(1, 2, 1, 16, dtype=torch.uint8)
        blocks[0, 0, 0, 0], blocks[0, 1, 0, 15] = 0x72, 0xA0
        scales = torch.tensor([[[128], [126]]], dtype=torch.uint8)
        made = weight_of({"e.up_blocks": blocks, "e.up_scales": scales}, quantised("mxfp4"))
        assert made.shape == (1, 32, 2)
        assert made[0, :2, 0].tolist() == [2, 12] and made[0, 31].tolist() == [0, -0.5]

    @pytest.mark.parametrize("library", ["compressed-tensors", "modelopt"])
    def test_nvfp4(self, library: str) -> None:
        codes = torch.tensor([[0x21] * 8], dtype=torch.uint8)
        scales = torch.full((1, 1), 0x40, dtype=torch.uint8).view(torch.float8_e4m3fn)
        if library == "modelopt":
            parts = {"m.weight": codes, "m.weight_scale_2": torch.tensor(4.0)}
        else:
            parts = {"m.weight_packed": codes, "m.weight_global_scale": torch.tensor([0.25])}
        made = weight_of(parts | {"m.weight_scale": scales}, quantised(library))
        assert made.tolist() == [[4, 8] * 8]


class TestReading:
    @pytest.mark.parametrize("case", MODELS)
    def test_in_pieces(self, case: str) -> None:
        config, tensors = MODELS[case]
        made = weight_of(tensors, config)
        assert made.dtype == torch.float32 and made.shape[-1] > 1

    @pytest.mark.parametrize("case", MODELS)
    def test_all_is_claimed(self, case: str) -> None:
        config, tensors = MODELS[case]
        table = table_of(tensors)
        reading = formats.detect(config, {}, table)
        found = reading.logical(table, contents_of(tensors, reading.needed(table)))
        rest = set(table) - reading.claimed(table, found)
        assert rest <= {"m.bias"}

    def test_less_is_read_than_all(self) -> None:
        for config, tensors in MODELS.values():
            (one,) = logical_of(tensors, config).values()
            codes = read(tensors, one, 0, 1)["codes"]
            if one.rows > one.step:
                assert codes.size < np.prod(one.parts["codes"].shape)

    def test_runs_are_merged(self) -> None:
        assert list(runs((4, 6), ((1, 3), (0, 6)))) == [(6, 18)]
        assert list(runs((4, 6), ((1, 3), (2, 4)))) == [(8, 10), (14, 16)]
        assert list(runs((2, 3, 4), ((1, 2), (0, 2), (0, 4)))) == [(12, 20)]
        assert list(runs((), ())) == [(0, 1)]

    def test_spans_end_with_a_matrix(self) -> None:
        one = LogicalTensor("w", (2, 4, 3), "fp8", {})
        assert list(row_spans(one, 1, 6)) == [(1, 3), (4, 3)]

    def test_needs_no_torch(self) -> None:
        code = "import shardmerge.formats, sys; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=SCRIPTS)

    def test_parameters_are_plain(self) -> None:
        for config, tensors in MODELS.values():
            (one,) = logical_of(tensors, config).values()
            assert list(one.parameters) == sorted(one.parameters)
            back = json.loads(json.dumps(one.parameters))
            again = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in back)
            assert again == one.parameters

    def test_it_does_not_matter_how_parts_are_ordered(self) -> None:
        config, tensors = MODELS["gptq"]
        turned = dict(reversed(tensors.items()))
        (one,), (other,) = logical_of(turned, config).values(), logical_of(tensors, config).values()
        assert one == other and hash(one) == hash(other)

    def test_tensors_that_are_alike_are_looked_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = quantised("fp8", weight_block_size=[2, 2])
        shapes = {"a": (4, 6), "b": (6, 4), "c": (4, 6), "d": (4, 6), "e": (6, 4)}
        codes = {f"{n}.weight": integers(*s, dtype=torch.uint8) for n, s in shapes.items()}
        tensors = {name: one.view(torch.float8_e4m3fn) for name, one in codes.items()}
        grids = {f"{n}.weight_scale_inv": random(-(-s[0] // 2), -(-s[1] // 2))
                 for n, s in shapes.items()}  # fmt: skip
        form = fp8_block.Fp8Block((2, 2))
        table = table_of(tensors | grids)
        each = {name: form.one(table, name) for name in tensors}
        asked, plain = [], fp8_block.Fp8Block.one
        monkeypatch.setattr(
            fp8_block.Fp8Block, "one", lambda *given: asked.append(given) or plain(*given)
        )
        found = logical_of(tensors | grids, config)
        assert {name: one._replace(first=None) for name, one in found.items()} == each
        assert len(asked) == len(set(shapes.values()))
        firsts = [found[f"{name}.weight"].first for name in "acd"]
        assert firsts == [None, found["a.weight"], found["a.weight"]]

    def test_mixed_precision(self) -> None:
        config = quantised(
            "compressed-tensors",
            format="mixed-precision",
            config_groups={
                "a": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32}},
                "b": {"weights": {"num_bits": 8, "strategy": "group", "group_size": 32}},
                "c": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}},
            },
        )
        tensors = {
            "a.weight_packed": integers(8, 8),
            "a.weight_scale": random(8, 2),
            "b.weight_packed": integers(8, 16),
            "b.weight_scale": random(8, 2),
            "c.weight": fp8(8, 4),
            "c.weight_scale": random(8, 1),
        }
        found = logical_of(tensors, config)
        shapes = {name: one.shape for name, one in found.items()}
        assert shapes == {"a.weight": (8, 64), "b.weight": (8, 64), "c.weight": (8, 4)}
        assert [one.parameter("bits") for one in found.values()] == [4, 8, None]

    @pytest.mark.parametrize("bits", [4, 8])
    def test_widths_that_only_the_stored_shape_tells(self, bits: int) -> None:
        groups = {
            str(n): {"weights": {"num_bits": n, "strategy": "channel", "type": "int"}}
            for n in (4, 8)
        }
        config = quantised("compressed-tensors", config_groups=groups)
        tensors = {
            "m.weight_packed": integers(8, 8),
            "m.weight_scale": random(8, 1),
            "m.weight_shape": torch.tensor([8, 256 // bits]),
        }
        assert weight_of(tensors, config).shape == (8, 256 // bits)
        del tensors["m.weight_shape"]
        with pytest.raises(UserError, match="config_groups"):
            logical_of(tensors, config)

    def test_gptq_of_several_widths(self) -> None:
        config = quantised("gptq", bits=4, group_size=32, dynamic={"+:m": {"bits": 8}})
        tensors = {"m.qweight": integers(16, 32), "m.qzeros": integers(2, 8)}
        (one,) = logical_of(tensors | {"m.scales": random(2, 32)}, config).values()
        assert one.parameter("bits") == 8 and one.shape == (32, 64)


PLAIN = {"m.weight": Entry("BF16", (4, 4))}


class TestDetect:
    def test_plain(self) -> None:
        assert formats.detect({}, {}, PLAIN) is None

    @pytest.mark.parametrize("method", ["fp8", "gptq", "bitsandbytes", "hqq"])
    def test_stale(self, method: str) -> None:
        assert formats.detect(quantised(method), {}, PLAIN) == "stale"
        assert formats.detect({}, {"quantize_config.json": {"bits": 4}}, PLAIN) == "stale"

    def test_masks_and_positions_are_no_codes(self) -> None:
        table = PLAIN | {"m.bias": Entry("BOOL", (4, 4)), "position_ids": Entry("I64", (9,))}
        assert formats.detect(quantised("fp8"), {}, table) == "stale"

    def test_codes_of_no_format(self) -> None:
        table = {"m.weight": Entry("F8_E4M3", (4, 4)), "n.weight": Entry("I8", (4, 4))}
        assert formats.detect({}, {}, table) is None

    @pytest.mark.parametrize("case", ["fp8-row", "bnb-int8", "nf4", "mxfp4", "nvfp4"])
    def test_tensors_that_tell_by_themselves(self, case: str) -> None:
        config, tensors = MODELS[case]
        (said,) = logical_of(tensors, config).values()
        (silent,) = logical_of(tensors).values()
        assert said == silent

    def test_names_that_only_look_so(self) -> None:
        table = PLAIN | {"m.num_blocks": Entry("F32", ()), "m.seen": Entry("U8", (4,))}
        assert formats.detect({}, {}, table) is None

    def test_gptq_needs_its_file(self) -> None:
        _, tensors = MODELS["gptq"]
        table = table_of(tensors)
        assert formats.detect({}, {}, table) is None
        files = {"quantize_config.json": {"bits": 4, "group_size": 16}}
        assert list(formats.detect({}, files, table).logical(table)) == ["m.weight"]

    def test_side_files(self) -> None:
        table = table_of(MODELS["fp8-tensor"][1])
        files = {"hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}}}
        assert formats.detect({}, files, table).said.method == "modelopt"
        table = table_of(MODELS["awq"][1])
        files = {"quant_config.json": {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}}
        assert formats.detect({}, files, table).logical(table)["m.weight"].shape == (24, 64)

    def test_text_part_and_old_keys(self) -> None:
        table = table_of(MODELS["fp8-block"][1])
        inner = {"text_config": BLOCKS}
        assert formats.detect(inner, {}, table).said.method == "fp8"
        config, tensors = MODELS["int8"]
        old = {
            "compression_config": {"config_groups": config["quantization_config"]["config_groups"]}
        }
        assert "m.weight" in logical_of(tensors, old)

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            (quantised("hqq"), "'hqq'"),
            ({"quantization_config": {"bits": 4}}, "not how"),
            ({"quantization_config": [1]}, "not a table"),
            ({"quantization_config": {"quant_method": 7}}, "not text"),
            (quantised("fp8", weight_block_size=[0, 128]), "weight_block_size"),
            (quantised("fp8", weight_block_size="x"), "weight_block_size"),
            (quantised("gptq", bits="four"), "bits"),
            (quantised("gptq", bits=True), "bits"),
            (quantised("gptq", bits=5), "5 bits"),
            (quantised("gptq", group_size=10**400), "group_size"),
            (quantised("gptq", checkpoint_format="marlin"), "marlin"),
            (quantised("awq", version="gemv"), "gemv"),
            (quantised("x" * 10**6), r"xxx\.\.\.xxx"),
            (quantised("gptq", bits=[[1] * 10**5]), "bits"),
            (quantised("compressed-tensors", config_groups=[1]), "table of settings"),
            (quantised("compressed-tensors", config_groups={"a": 1}), "table of settings"),
            (scheme(4, strategy="spiral"), "spiral"),
            (scheme(4, symmetric="no"), "symmetric"),
            (scheme(8, strategy="block", block_structure=[1]), "block"),
            (quantised("compressed-tensors", format="marlin-24"), "marlin-24"),
            (
                quantised("compressed-tensors", sparsity_config={"format": "sparse-bitmask"}),
                "sparse-bitmask",
            ),
        ],
    )
    def test_refused(self, config: dict[str, Any], says: str) -> None:
        with pytest.raises(UserError, match=says) as error:
            formats.detect(config, {}, {"w": Entry("U8", (4, 4))}, "org/model")
        assert "config.json" in error.value.where and len(str(error.value)) < 500


#: Changes to a model of ``MODELS`` that make it wrong, and what the error says.
BROKEN = [
    ("fp8-block", {"m.weight_scale_inv": random(1, 2)}, "m.weight_scale_inv"),
    ("fp8-block", {"m.weight_scale_inv": random(1, 1)}, "m.weight_scale_inv"),
    ("fp8-block", {"m.weight_scale_inv": integers(2, 2)}, "I32"),
    ("fp8-block", {"m.weight": fp8(0, 130)}, "empty"),
    ("fp8-block-3d", {"e.up_scale_inv": random(3, 2, 1)}, "e.up_scale_inv"),
    ("fp8-tensor", {"m.weight_scale": random(2)}, "m.weight_scale"),
    ("fp8-tensor", {"m.pre_quant_scale": random(4)}, "not known"),
    ("fp8-row", {"m.weight_scale": random(5, 1)}, "m.weight_scale"),
    ("pack", {"m.weight_scale": random(40, 1)}, "none of the groups"),
    ("pack", {"m.weight_zero_point": None}, "missing"),
    ("pack", {"m.weight_zero_point": integers(4, 2)}, "m.weight_zero_point"),
    ("pack", {"m.weight_g_idx": integers(63) % 2}, "m.weight_g_idx"),
    ("pack", {"m.weight_g_idx": torch.full((64,), 2, dtype=torch.int32)}, "group 2"),
    ("pack", {"m.weight_shape": torch.tensor([40, 60])}, "m.weight_shape"),
    ("pack", {"m.weight": random(40, 64)}, "twice"),
    ("int8", {"m.weight_scale": random(5, 1)}, "m.weight_scale"),
    ("int8", {"m.weight_zero_point": integers(6, dtype=torch.int8)}, "m.weight_zero_point"),
    ("gptq", {"m.scales": None}, "m.scales"),
    ("gptq", {"m.qzeros": None}, "m.qzeros"),
    ("gptq", {"m.scales": random(3, 40)}, "m.qzeros"),
    ("gptq", {"m.scales": random(1, 40), "m.qzeros": integers(1, 5)}, "m.scales"),
    ("gptq", {"m.qweight": integers(8, 39)}, "m.qweight"),
    ("gptq", {"m.g_idx": torch.arange(65, dtype=torch.int32) % 4}, "m.g_idx"),
    ("gptq", {"m.g_idx": torch.arange(64, dtype=torch.int32) % 5}, "group 4"),
    ("gptq", {"m.g_idx": torch.full((64,), -1, dtype=torch.int32)}, "group -1"),
    ("gptq-3bit", {"m.qweight": integers(7, 64)}, "m.qzeros"),
    ("awq", {"m.scales": random(3, 24)}, "m.scales"),
    ("awq", {"m.qzeros": integers(2, 4)}, "m.qzeros"),
    ("awq", {"m.qweight": integers(64, 3, dtype=torch.uint8)}, "U8"),
    ("bnb-int8", {"m.SCB": random(5)}, "m.SCB"),
    ("bnb-int8", {"m.weight_format": torch.tensor(1, dtype=torch.uint8)}, "kind of GPU"),
    ("bnb-int8", {"m.weight": random(6, 4)}, "F32"),
    ("nf4", {"m.weight.absmax": None}, "m.weight.absmax"),
    ("nf4", {"m.weight.absmax": integers(1, dtype=torch.uint8)}, "m.weight.absmax"),
    ("nf4", {"m.weight.absmax": random(2)}, "F32"),
    ("nf4", {"m.weight.nested_quant_map": random(255)}, "nested_quant_map"),
    ("nf4", {"m.weight.nested_absmax": random(2)}, "nested_absmax"),
    ("nf4", {"m.weight": integers(63, 1, dtype=torch.uint8)}, "m.weight"),
    ("nf4", {"m.weight": None}, "m.weight"),
    ("nf4", {STATE: torch.zeros(9)}, "F32"),
    ("nf4", {STATE: torch.tensor(list(b"{'a'"), dtype=torch.uint8)}, "JSON"),
    ("nf4", {STATE: torch.full((60_000,), ord("["), dtype=torch.uint8)}, "JSON"),
    ("nf4", {STATE: torch.tensor(list(b"[1]"), dtype=torch.uint8)}, "JSON"),
    ("nf4", {STATE: torch.full((3,), 255, dtype=torch.uint8)}, "JSON"),
    ("nf4", {STATE: torch.full((70_000,), 32, dtype=torch.uint8)}, "JSON"),
    ("nf4", {STATE: state(shape=None)}, "cannot be"),
    ("nf4", {STATE: state(shape=[-4, -32])}, "cannot be"),
    ("nf4", {STATE: state(shape=[2**40, 2**40])}, "cannot be"),
    ("nf4", {STATE: state(shape=[4.0, 32])}, "cannot be"),
    ("nf4", {STATE: state(shape="ab")}, "cannot be"),
    ("nf4", {STATE: state(blocksize=0)}, "cannot be"),
    ("nf4", {STATE: state(blocksize=[64])}, "cannot be"),
    ("nf4", {STATE: state(quant_type="fp4")}, "cannot be"),
    ("nf4", {STATE: state(quant_type=[])}, "cannot be"),
    ("nf4", {STATE: state(nested_blocksize=256, nested_offset="x")}, "cannot be"),
    ("nf4", {STATE: state(nested_blocksize=256, nested_offset=1e400)}, "cannot be"),
    ("nf4", {STATE: state(nested_blocksize=256, nested_dtype="float16")}, "cannot be"),
    ("mxfp4", {"e.down_proj_scales": None}, "e.down_proj_scales"),
    ("mxfp4", {"e.down_proj_scales": integers(2, 5, 2, dtype=torch.uint8)}, "e.down_proj_scales"),
    ("mxfp4", {"e.down_proj_blocks": integers(2, 5, 3, 8, dtype=torch.uint8)}, "group of 32"),
    ("nvfp4", {"m.weight_global_scale": None}, "m.weight_global_scale"),
    ("nvfp4", {"m.weight_scale": fp8(6, 3)}, "m.weight_scale"),
    ("nvfp4", {"m.weight_global_scale": random(2)}, "m.weight_global_scale"),
    ("nvfp4-modelopt", {"m.weight_scale": None}, "m.weight_scale"),
    ("nvfp4-modelopt", {"m.pre_quant_scale": random(32)}, "not known"),
]


class TestHostile:
    @pytest.mark.parametrize(("case", "change", "says"), BROKEN)
    def test_broken_parts(self, case: str, change: dict[str, Any], says: str) -> None:
        config, tensors = MODELS[case]
        changed = {n: t for n, t in (tensors | change).items() if t is not None}
        with pytest.raises(UserError, match=says) as error:
            for one in logical_of(changed, config).values():
                decoded(changed, one)
        assert error.value.where.startswith("tensor '")

    @pytest.mark.parametrize(
        "shape", [(2**62, 2**62), (2**63 - 1,) * 2, (-1, 4), (2**40, 2**40), (1,) * 5000]
    )
    def test_huge_shapes(self, shape: tuple[Any, ...]) -> None:
        for name, (config, tensors) in MODELS.items():
            table = table_of(tensors)
            for part in table:
                wrong = table | {part: Entry(table[part].dtype, shape)}
                reading = formats.detect(config, {}, wrong)
                try:
                    contents = contents_of(tensors, [n for n in tensors if "quant_state" in n])
                    found = reading.logical(wrong, contents)
                except UserError as error:
                    assert len(str(error)) < 500, name
                else:
                    assert part in reading.dropped(wrong) or part not in {
                        ref.tensor for one in found.values() for ref in one.parts.values()
                    }, (name, part)

    def test_the_content_of_a_state_was_not_read(self) -> None:
        config, tensors = MODELS["nf4"]
        table = table_of(tensors)
        with pytest.raises(UserError, match="was not read"):
            formats.detect(config, {}, table).logical(table, {})

    def test_any_mixture_of_shapes(self) -> None:
        """Whatever passes can be read: boxes lie within the parts, and decoding ends."""
        draw = chance.Random(0)
        passed = 0
        for _ in range(1500):
            config, tensors = draw.choice(list(MODELS.values()))
            tensors = dict(tensors)
            for name in draw.sample(sorted(tensors), draw.randint(0, min(2, len(tensors)))):
                tensors[name] = _mutated(draw, tensors[name])
            if not isinstance(formats.detect(config, {}, table_of(tensors)), formats.Reading):
                continue
            try:
                for one in logical_of(tensors, config).values():
                    _within(one)
                    decoded(tensors, one, draw.choice([None, 3]))
                    passed += 1
            except UserError:
                continue
        assert passed > 300


def _mutated(draw: chance.Random, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of another shape or type."""
    if draw.random() < 0.3 and tensor.dtype != torch.uint8:
        dtype = draw.choice([torch.int8, torch.uint8, torch.float32, torch.bfloat16, torch.int32])
        return integers(*tensor.shape, dtype=dtype) if tensor.ndim else tensor
    shape = list(tensor.shape)
    for index in range(len(shape)):
        shape[index] = draw.choice([shape[index]] * 3 + [1, 2, shape[index] * 2, shape[index] + 1])
    if draw.random() < 0.2 and shape:
        shape.pop(draw.randrange(len(shape)))
    if draw.random() < 0.1:
        shape.append(1)
    return integers(*shape, dtype=tensor.dtype, seed=draw.randrange(100))


def _within(one: LogicalTensor) -> None:
    """Check that boxes of all rows lie within their parts."""
    for first in range(0, one.rows, 5):
        for begin, count in row_spans(one, first, min(5, one.rows - first)):
            for role, box in formats.rows(one, begin, count).items():
                ref: PartRef = one.parts[role]
                assert len(box) == len(ref.shape)
                assert all(0 <= a < b <= n for (a, b), n in zip(box, ref.shape, strict=True))
