"""Pickled weights: converted exactly, once, and never run."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers.engine_cases import assert_same, load
from helpers.models import llama, llama_shapes, random_tensors
from helpers.pickle_cases import Trap, pickled_model, saved
from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.base.safetensors import read_header
from shardmerge.compose.architecture.names import is_head
from shardmerge.plan.decide import decide
from shardmerge.plan.plan import NO_PLAN
from shardmerge.recipe.settings import load_settings
from shardmerge.sources import unpickle
from shardmerge.sources.checkpoint_files import adapter_files, weight_files
from shardmerge.sources.locking import lock_adapter, lock_folder
from shardmerge.sources.pickles import RECORD, find_conversion, finish_conversion, pickled_weights

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
convert = partial(unpickle.convert, is_head=is_head)


class TestConvert:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_every_kind_of_tensor(self, tmp_path: Path, zipped: bool) -> None:
        wide = torch.randn(6, 8)
        tensors = {
            "half": torch.randn(3, 5).half(),
            "bfloat": torch.randn(4).bfloat16(),
            "double": torch.randn(2, 2, dtype=torch.float64),
            "integers": torch.arange(5),
            "truth": torch.tensor([True, False, True]),
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 4),
            "transposed": wide.t(),
            "every other": wide[:, ::2],
            "same memory": wide,
            "special": torch.tensor([float("nan"), float("inf"), -0.0]),
            "parameter": torch.nn.Parameter(torch.randn(3)),
        }
        path = saved(tmp_path, tensors, _use_new_zipfile_serialization=zipped)
        out = tmp_path / "model.safetensors"
        assert convert(path, out, tied=True) == {}
        got = load(out)
        assert list(got) == list(tensors)
        for name, tensor in tensors.items():
            assert_same(got[name], tensor.detach().contiguous())
        assert dict(read_header(out).metadata) == {"format": "pt"}
        assert list(tmp_path.glob(".*")) == []

    def test_safetensors_reads_it(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        tensors = random_tensors(llama_shapes(2), 3, torch.bfloat16)
        out = tmp_path / "model.safetensors"
        convert(saved(tmp_path, tensors), out, tied=False)
        found = load_file(out)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)

    @pytest.mark.parametrize("tied", [True, False])
    def test_tied_embeddings(self, tmp_path: Path, tied: bool) -> None:
        one = torch.randn(9, 4)
        tensors = {"lm_head.weight": one, "model.embed_tokens.weight": one, "other": one}
        out = tmp_path / "model.safetensors"
        dropped = convert(saved(tmp_path, tensors), out, tied=tied)
        expected = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
        assert dropped == expected
        assert set(load(out)) == set(tensors) - set(dropped)
        assert dict(read_header(out).metadata) == {"format": "pt"} | expected

    def test_an_equal_head_of_its_own_memory_stays(self, tmp_path: Path) -> None:
        one = torch.randn(9, 4)
        tensors = {"lm_head.weight": one.clone(), "model.embed_tokens.weight": one}
        convert(saved(tmp_path, tensors), tmp_path / "model.safetensors", tied=True)
        assert set(load(tmp_path / "model.safetensors")) == set(tensors)

    def test_the_same_bytes_again(self, tmp_path: Path) -> None:
        path = saved(tmp_path, random_tensors(llama_shapes(2), 3))
        for name in "ab":
            convert(path, tmp_path / f"{name}.safetensors", tied=False)
        assert (tmp_path / "a.safetensors").read_bytes() == (
            tmp_path / "b.safetensors"
        ).read_bytes()


class TestHostile:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("beside", [True, False])
    def test_no_code_runs(self, tmp_path: Path, zipped: bool, beside: bool) -> None:
        mark = tmp_path / "ran"
        value = {"w": torch.ones(2), "x": Trap(mark)} if beside else Trap(mark)
        path = saved(tmp_path, value, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match="holds more than tensors") as caught:
            convert(path, tmp_path / "model.safetensors", tied=False)
        assert not mark.exists()
        assert "system" in str(caught.value)
        assert "weights_only" not in str(caught.value)  # torch's own text says how to run it
        assert not (tmp_path / "model.safetensors").exists()

    def test_the_trap_works(self, tmp_path: Path) -> None:
        """Without this, the test above could not fail."""
        mark = tmp_path / "ran"
        pickle.loads(pickle.dumps(Trap(mark)))
        assert mark.exists()

    def test_plain_pickle(self, tmp_path: Path) -> None:
        mark = tmp_path / "ran"
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Trap(mark)}))
        with pytest.raises(UserError):
            convert(tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors", tied=False)
        assert not mark.exists()

    @pytest.mark.parametrize("content", [b"", b"not a pickle at all", b"PK\x03\x04 broken"])
    def test_broken(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(UserError, match=r"pytorch_model\.bin"):
            convert(tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors", tied=False)

    def test_cut_off(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"w": torch.ones(1000)})
        path.write_bytes(path.read_bytes()[:-600])
        assert not zipfile.is_zipfile(path)
        with pytest.raises(UserError, match=r"pytorch_model\.bin"):
            convert(path, tmp_path / "model.safetensors", tied=False)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"epoch": 3, "w": torch.ones(1)}, "'epoch', a int"),
            ({"state_dict": {"w": torch.ones(1)}}, "'state_dict', a dict"),
            ([torch.ones(1)], "a list"),
            ({}, "a dict, no table"),
            ({"w": torch.ones(2, 2).to_sparse()}, "'w'"),
            ({"w": torch.ones(2, dtype=torch.complex128)}, "complex128"),
        ],
    )
    def test_no_weights(self, tmp_path: Path, value: object, message: str) -> None:
        with pytest.raises(UserError, match=message):
            convert(saved(tmp_path, value), tmp_path / "model.safetensors", tied=False)


class TestFolders:
    @pytest.mark.parametrize("files", [1, 3])
    def test_a_conversion_is_a_model(self, tmp_path: Path, files: int) -> None:
        tensors = pickled_model(tmp_path / "old", files)
        identities = Identities(tmp_path / "cache.json")
        args = (tmp_path / "old", "o/m", "model", tmp_path / "new", identities)
        conversion = find_conversion(*args)
        assert not conversion.done
        assert len(conversion.weights) == files
        assert conversion.small == ("config.json", "generation_config.json")
        for name, pickled in conversion.weights.items():
            convert(conversion.folder / pickled, conversion.output / name, tied=False)
        assert not conversion.done
        finish_conversion(
            conversion.output, conversion.folder, conversion.small, conversion.weights,
            conversion.record,
        )  # fmt: skip
        assert conversion.done
        locked = lock_folder(tmp_path / "new", "o/m", identities)
        assert {n: t.shape for n, t in locked.tensors.items()} == {
            n: tuple(t.shape) for n, t in tensors.items()
        }
        other = {name: tensor + 1 for name, tensor in tensors.items()}
        saved(tmp_path / "old", other, next(iter(conversion.weights.values())))
        assert not find_conversion(*args).done

    def test_safetensors_come_first(self, tmp_path: Path) -> None:
        llama(tmp_path / "m", 0)
        saved(tmp_path / "m", {"w": torch.ones(1)})
        assert pickled_weights(tmp_path / "m", "model") == {}

    def test_a_single_pickle_beside_an_index_is_the_model(self, tmp_path: Path) -> None:
        pickled_model(tmp_path / "m", 2)
        saved(tmp_path / "m", {"w": torch.ones(1)}, "pytorch_model.bin")
        found = pickled_weights(tmp_path / "m", "model")
        assert found == {"model.safetensors": "pytorch_model.bin"}

    def test_other_pickles_are_left_alone(self, tmp_path: Path) -> None:
        pickled_model(tmp_path / "m", 1)
        torch.save({}, tmp_path / "m" / "optimizer.bin")
        assert pickled_weights(tmp_path / "m", "model") == {
            "model.safetensors": "pytorch_model.bin"
        }

    def test_an_index_that_leads_out(self, tmp_path: Path) -> None:
        pickled_model(tmp_path / "m")
        index = tmp_path / "m" / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": {"w": "../pytorch_model.bin"}}))
        with pytest.raises(UserError, match="not a plain path"):
            pickled_weights(tmp_path / "m", "model")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({}, "without a weight_map"),
            ({"weight_map": {"w": "pytorch_model-2.bin"}}, r"'pytorch_model-2\.bin', which is not"),
        ],
    )
    def test_a_broken_index(self, tmp_path: Path, content: dict, message: str) -> None:
        pickled_model(tmp_path / "m")
        (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message) as caught:
            pickled_weights(tmp_path / "m", "model")
        assert "pytorch_model.bin.index.json" in str(caught.value)

    def test_a_link_out_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"x")
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "pytorch_model.bin").symlink_to(tmp_path / "secret")
        with pytest.raises(UserError, match="a link out of the model's folder"):
            pickled_weights(tmp_path / "m", "model")

    def test_the_same_tensor_twice(self, tmp_path: Path) -> None:
        for name in "ab":
            convert(
                saved(tmp_path, {"w": torch.ones(1)}), tmp_path / f"{name}.safetensors", tied=False
            )
        with pytest.raises(UserError, match=r"tensor 'w' both in a\.safetensors and in b\."):
            finish_conversion(tmp_path, tmp_path, [], ["a.safetensors", "b.safetensors"], {})
        assert not (tmp_path / RECORD).exists()


class TestRefusals:
    """Without ``allow_pickle`` nothing is loaded, and every refusal names the key."""

    def test_model(self, tmp_path: Path) -> None:
        pickled_model(tmp_path / "m")
        with pytest.raises(UserError, match="allow_pickle: true"):
            lock_folder(tmp_path / "m", "o/m", Identities(tmp_path / "cache.json"))

    def test_adapter(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        saved(tmp_path, {"w": torch.ones(1)}, "adapter_model.bin")
        with pytest.raises(UserError, match="allow_pickle: true") as caught:
            lock_adapter(tmp_path, "o/l", Identities(tmp_path / "cache.json"))
        assert "adapter_model.bin" in str(caught.value)

    def test_hub(self) -> None:
        for refuse in (
            lambda: weight_files(["config.json", "pytorch_model.bin"], None, "o/m"),
            lambda: adapter_files(["adapter_config.json", "adapter_model.bin"], "o/l"),
        ):
            with pytest.raises(UserError, match="allow_pickle: true") as caught:
                refuse()
            assert "hf download" in str(caught.value)

    def test_a_plan_needs_the_conversion(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        pickled_model(tmp_path / "m")
        (tmp_path / "r.yaml").write_text("merge_method: passthrough\nmodels: [{model: ./m}]\n")
        settings = load_settings({"recipes": ["r.yaml"], "allow_pickle": True})
        for asked in ({"convert": True}, {"head": False}):
            found = decide(settings, say=print, **asked)
            assert len(found.conversions) == 1
            assert (found.plan, found.path) == (NO_PLAN, None)
        with pytest.raises(UserError, match="snakemake convert"):
            decide(settings, say=print)

    def test_finding_them_needs_no_torch(self, tmp_path: Path) -> None:
        code = (
            "import sys, shardmerge.sources.pickles, shardmerge.plan.decide\n"
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SCRIPTS)})
        assert done.returncode == 0


class TestModuleFolders:
    """Folders of modules with weights of their own, as pickles beside pickled weights."""

    def test_they_are_converted_too(self, tmp_path: Path) -> None:
        folder, output = tmp_path / "m", tmp_path / "converted"
        pickled_model(folder)
        for name in ("2_Dense", "3_Dense"):
            (folder / name).mkdir()
            (folder / name / "config.json").write_text("{}")
        dense = torch.randn(3, 4)
        saved(folder / "2_Dense", {"linear.weight": dense}, "pytorch_model.bin")
        from safetensors.torch import save_file

        save_file({"linear.weight": dense + 1}, folder / "3_Dense" / "model.safetensors")
        identities = Identities(tmp_path / "cache.json")
        found = find_conversion(folder, "m", "model", output, identities)
        for weights, name in found.weights.items():
            convert(folder / name, output / weights, tied=False)
        finish_conversion(output, folder, found.small, found.weights, found.record)
        locked = lock_folder(output, "m", identities)
        assert {"2_Dense/linear.weight", "3_Dense/linear.weight"} < set(locked.tensors)
        assert torch.equal(load(output / "2_Dense" / "model.safetensors")["linear.weight"], dense)
