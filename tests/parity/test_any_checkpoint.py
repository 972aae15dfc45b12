"""Merges of checkpoints of any kind: the same files, 0 differing bits to mergekit-pytorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from oracle import differing_bits, load_folder, run_shardmerge
from safetensors.torch import save_file

from shardmerge.base.errors import UserError

#: As UNets, LoRA files of kohya and audio models call their tensors, and with shapes of all ranks.
SHAPES = {
    "model.diffusion_model.input_blocks.0.0.weight": (6, 4, 3, 3),
    "model.diffusion_model.input_blocks.0.0.bias": (6,),
    "first_stage_model.decoder.conv.weight": (5, 7, 3),
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (8, 4),
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8),
    "params/encoder/kernel": (9, 5),
}
BUFFER = {"bn.num_batches_tracked": torch.tensor(12), "position_ids": torch.arange(5)[None]}
FLAGS = {"same": [], "union": ["--tensor-union"], "intersection": ["--tensor-intersection"]}
#: Of files b and c, with a as the base: method and its parameters.
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.7},
    "task_arithmetic": {"weight": 0.4},
    "ties": {"weight": 0.5, "density": 0.6},
    "breadcrumbs": {"weight": 0.5, "density": 0.7, "gamma": 0.1},
    "sce": {"select_topk": 0.5},
    "model_stock": {},
    "karcher": {"weight": 0.5},
    "multislerp": {"weight": 0.5},
    "ramplus_tl": {},
}
#: Of file b alone, with a as the base.
PAIRS: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.01},
    "arcee_fusion": {},
}


def tensors(seed: int, names: Any = SHAPES, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(SHAPES[n], generator=generator).to(dtype) for n in names} | BUFFER


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files; each but the first lacks another tensor, and the first has one for itself."""
    monkeypatch.chdir(tmp_path)
    base = tensors(0)
    for seed, name in enumerate("abc"):
        noise = tensors(seed + 1)
        own = {n: (t + 0.1 * noise[n] if t.is_floating_point() else t) for n, t in base.items()}
        save_file(own, f"{name}.safetensors")
    return tmp_path


def lacking(name: str, *tensors: str) -> None:
    """Take tensors out of a file."""
    path = Path(f"{name}.safetensors")
    held = load_folder_file(path)
    save_file({n: t for n, t in held.items() if n not in tensors}, path)


def load_folder_file(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def mergekit(document: dict[str, Any], mode: str = "same") -> dict[str, torch.Tensor]:
    """Return what mergekit-pytorch makes of a document; it passes over the key for the mode."""
    from mergekit.scripts.merge_raw_pytorch import SimpleLoaderCache, main

    SimpleLoaderCache._instance = None  # it keeps files of earlier runs, by path
    Path("theirs.yaml").write_text(yaml.safe_dump(document | {"tensors": mode}))
    main.main(["theirs.yaml", "theirs", "--quiet", *FLAGS[mode]], standalone_mode=False)
    return load_folder(Path("theirs"))


def ours(document: dict[str, Any], mode: str | None = None, **config: Any) -> dict[str, Any]:
    asked = {"tensors": mode} if mode else {}
    Path("out.yaml").write_text(yaml.safe_dump(document | asked))
    values = {"numerics": "mergekit-0.1.5"} | config
    return run_shardmerge(Path("out.yaml"), Path(os.getcwd()), checked=True, **values)["out"]


def document(method: str, parameters: dict[str, Any], inputs: str = "bc") -> dict[str, Any]:
    models = [{"model": f"{name}.safetensors", "parameters": parameters} for name in inputs]
    return {"merge_method": method, "base_model": "a.safetensors", "models": models}


@pytest.mark.parametrize("dtypes", [{}, {"dtype": "float32", "out_dtype": "bfloat16"}])
@pytest.mark.parametrize("method", [*METHODS, *PAIRS])
def test_bits(files: Path, method: str, dtypes: dict[str, str]) -> None:
    parameters = METHODS.get(method) or PAIRS.get(method) or {}
    inputs = "b" if method in PAIRS else "bc"
    shared = method in ("slerp", "nearswap", "sce", "karcher")
    made = document(method, {} if shared else parameters, inputs) | dtypes
    made |= {"parameters": parameters} if shared else {}
    if method in ("karcher", "linear", "multislerp"):
        del made["base_model"]
    assert differing_bits(ours(made), mergekit(made)) == {}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "model_stock"])
@pytest.mark.parametrize("mode", ["union", "intersection"])
def test_bits_of_tensors_that_one_lacks(files: Path, mode: str, method: str) -> None:
    names = list(SHAPES)
    lacking("b", names[0])
    if method != "model_stock":  # mergekit has it fail in a union
        lacking("c", names[1])
    if method == "model_stock" and mode == "union":
        lacking("c", names[0])
    made = document(method, METHODS[method]) | {"parameters": METHODS[method]}
    theirs = mergekit(made, mode)
    assert differing_bits(ours(made, mode), theirs) == {}
    kept = {"union": 6, "intersection": 5 if method == "model_stock" else 4}[mode]
    if method == "model_stock" and mode == "union":
        kept = 5  # what the base alone has is in no checkpoint that is listed
    assert len(theirs) == kept + len(BUFFER)


def test_a_single_owner_is_scaled_as_mergekit_does(files: Path) -> None:
    lacking("c", "params/encoder/kernel")
    made = document("linear", {"weight": 0.5}) | {"parameters": {"normalize": False}}
    del made["base_model"]
    assert differing_bits(ours(made, "union"), mergekit(made, "union")) == {}


def test_filters_match_parts_of_names(files: Path) -> None:
    weight = [
        {"filter": "lora_up", "value": 0.9},
        {"filter": "params/", "value": 0.2},
        {"value": 0.4},
    ]
    made = document("linear", {"weight": weight})
    del made["base_model"]
    assert differing_bits(ours(made), mergekit(made)) == {}


def test_tensors_of_the_base_alone_are_left_out(files: Path) -> None:
    for name in "bc":
        lacking(name, "params/encoder/kernel")
    made = document("ties", METHODS["ties"])
    theirs = mergekit(made)
    assert "params/encoder/kernel" not in theirs
    assert differing_bits(ours(made), theirs) == {}


def test_both_refuse_a_tensor_that_one_lacks(files: Path) -> None:
    lacking("c", "params/encoder/kernel")
    made = document("linear", {"weight": 0.5}) | {"parameters": {"weight": 1}}
    with pytest.raises(RuntimeError, match="Missing tensors"):
        mergekit(made)
    with pytest.raises(UserError, match=r"'params/encoder/kernel' is in .* not in 'c.safetens"):
        ours(made)


def test_what_mergekit_cannot_merge_is_taken_as_it_is(files: Path) -> None:
    lacking("a", "params/encoder/kernel")
    lacking("c", "params/encoder/kernel")
    made = document("ties", METHODS["ties"])
    with pytest.raises(ValueError, match="Base input is not present"):
        mergekit(made, "union")
    found = ours(made, "union")["params/encoder/kernel"]
    assert torch.equal(found, load_folder_file(Path("b.safetensors"))["params/encoder/kernel"])


def test_float32_rounds_once(files: Path) -> None:
    made = document("linear", {"weight": 0.3})
    del made["base_model"]
    found = ours(made, numerics="float32")
    held = [load_folder_file(Path(f"{name}.safetensors")) for name in "bc"]
    for name in SHAPES:
        exact = (held[0][name].double() + held[1][name].double()) / 2
        assert (found[name].double() - exact).abs().max() <= 2**-10 * exact.abs().max()


@pytest.mark.parametrize("kinds", [("e4m3fn", "e4m3fn"), ("e5m2", "e4m3fn"), ("e4m3fn", None)])
def test_float8_values(files: Path, kinds: tuple[str, str | None]) -> None:
    """As files of diffusion models have them, beside others of 16 bits."""
    for name, kind in zip("bc", kinds, strict=True):
        if kind:
            dtype = getattr(torch, f"float8_{kind}")
            held = load_folder_file(Path(f"{name}.safetensors"))
            held = {n: t.to(dtype) if t.is_floating_point() else t for n, t in held.items()}
            save_file(held | {"alpha": torch.tensor(0.5).to(dtype)}, f"{name}.safetensors")
        else:
            held = load_folder_file(Path(f"{name}.safetensors")) | {"alpha": torch.tensor(2.0)}
            save_file(held, f"{name}.safetensors")
    for more in ({"dtype": "float32"}, {"dtype": "float32", "out_dtype": "float16"}):
        made = document("linear", {"weight": 0.7}) | more
        del made["base_model"]
        assert differing_bits(ours(made), mergekit(made)) == {}
    made = document("ties", METHODS["ties"], "c") | {
        "dtype": "float32",
        "base_model": "b.safetensors",
    }
    assert differing_bits(ours(made), mergekit(made)) == {}
