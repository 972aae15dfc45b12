"""Quantised sources merged, from recipe to check: as if they had been decoded before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.adapter_cases import factors, write_adapter
from helpers.built_model import Built, flip, inputs_of, merge
from helpers.engine_cases import SMALL, Models, tuned
from helpers.format_cases import decoded, logical_of
from helpers.format_models import MODELS
from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.algebra.leaves import bytes_read
from shardmerge.algebra.spec import ShardSpec, delta_name
from shardmerge.base.errors import UserError
from shardmerge.check.shard import check_shard
from shardmerge.engine import decoding
from shardmerge.plan.files import load_spec


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoding, "_PIECE", 150)  # elements: pieces end within tensors
    monkeypatch.setattr(decoding, "_SCATTERED", 4)  # ranges: small matrices are held as large are


def save(name: str, tensors: dict[str, torch.Tensor], config: dict) -> None:
    folder = Path("models", name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "x"} | config))
    names = list(tensors)
    halves = {"1": names[::2], "2": names[1::2]}  # parts of a weight lie in two files
    weight_map = {}
    for number, part in halves.items():
        if part:
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({n: tensors[n].contiguous() for n in part}, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
    text = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def models(case: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Write a quantised model and a plain one with its tensors; return the former decoded."""
    config, tensors = MODELS[case]
    logical = logical_of(tensors, config)
    values = {name: decoded(tensors, one) for name, one in logical.items()}
    values |= {n: t for n, t in tensors.items() if n.endswith(".bias")}
    save("q", tensors, config)
    generator = torch.Generator().manual_seed(7)
    plain = {n: torch.randn(v.shape, generator=generator).to(dtype) for n, v in values.items()}
    save("base", plain, {})
    return values


def built(recipe: dict, **config: Any) -> tuple[Built, dict[str, torch.Tensor]]:
    with tuned(**SMALL):
        made = merge(
            json.dumps(recipe), sources={n: f"models/{n}" for n in ("q", "base")}, **config
        )
    return made, loaded(job.output for job in made.build.shards)


def loaded(files: Iterable[str | Path]) -> dict[str, torch.Tensor]:
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool(((found == wanted) | (found.isnan() & wanted.isnan())).all())


TASK = {
    "name": "out",
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [{"model": "q", "parameters": {"weight": 0.75}}],
}
ALONE = {"name": "out", "merge_method": "passthrough", "models": [{"model": "q"}]}


@pytest.mark.parametrize("case", MODELS)
class TestEveryFormat:
    def test_a_task_vector(self, case: str) -> None:
        values = models(case)
        base = loaded(Path("models/base").glob("*.safetensors"))
        _, found = built(TASK | {"dtype": "bfloat16"}, deltas="fuse")
        assert found.keys() == values.keys()
        for name, value in values.items():
            delta = (value.float() - base[name].float()).bfloat16().float()
            assert alike(found[name], (base[name].float() + 0.75 * delta).bfloat16())

    def test_alone(self, case: str) -> None:
        """It is saved in bfloat16 where the recipe names no type, and its config is a plain one."""
        values = models(case)
        made, found = built(ALONE)
        for name, value in values.items():
            assert alike(found[name], value if name.endswith(".bias") else value.bfloat16())
        config = json.loads((made.folder / "config.json").read_text())
        assert "quantization_config" not in config


class TestEveryWay:
    """One format by every way that leads through the engine."""

    CASE = "gptq"

    def merged(
        self, recipe: dict, **config: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the decoded source, the plain one and the result."""
        (value,) = models(self.CASE).values()
        (base,) = loaded(Path("models/base").glob("*.safetensors")).values()
        _, found = built(recipe | {"dtype": "bfloat16"}, **config)
        return value, base.float(), found["m.weight"]

    def test_stored_task_vectors(self) -> None:
        value, base, found = self.merged(TASK, deltas="store")
        delta = (value - base).bfloat16().float()
        assert torch.equal(found, (base + 0.75 * delta).bfloat16())
        (shard,) = Path("results/deltas").rglob("*.safetensors")
        assert [t.dtype for t in load_file(shard).values()] == [torch.bfloat16]

    def test_a_quantised_base(self) -> None:
        models = [{"model": "base", "parameters": {"weight": 0.75}}]
        value, base, found = self.merged(TASK | {"base_model": "q", "models": models})
        delta = (base - value).bfloat16().float()
        assert torch.equal(found, (value + 0.75 * delta).bfloat16())

    def test_mergekit_numerics(self) -> None:
        """What mergekit makes of a copy in bfloat16."""
        value, base, found = self.merged(TASK, numerics="mergekit-0.1.5")
        copied, base = value.bfloat16(), base.bfloat16()
        vector = (copied - base) * torch.tensor(0.75, dtype=torch.bfloat16)
        assert torch.equal(found, base + vector)

    def test_a_method_that_sees_whole_tensors(self) -> None:
        both = [{"model": name} for name in ("base", "q")]
        recipe = {"name": "out", "merge_method": "slerp", "base_model": "base", "models": both}
        value, _, found = self.merged(recipe | {"parameters": {"t": 1}})
        assert torch.allclose(found.float(), value, atol=0.02 * float(value.abs().max()))

    def test_saved_in_float32(self) -> None:
        (value,) = models(self.CASE).values()
        _, found = built(ALONE | {"dtype": "float32"})
        assert torch.equal(found["m.weight"], value)

    def test_a_wrong_element_is_found(self) -> None:
        models(self.CASE)
        made, _ = built(TASK | {"dtype": "bfloat16"})
        (job,) = made.build.shards
        spec, damaged = load_spec(job.digest), Path("damaged.safetensors")
        damaged.write_bytes(Path(job.output).read_bytes())
        flip(damaged, damaged.stat().st_size - 1)
        with pytest.raises(UserError, match=r"m\.weight.*must be"):
            check_shard(spec, damaged, *inputs_of(job, spec))


def test_rows_follow_tokens() -> None:
    """Rows of a decoded tensor in another order, zeros among them."""
    config, tensors = MODELS["fp8-block"]
    (one,) = logical_of(tensors, config).values()
    whole = decoded(tensors, one)
    folder = Path("m")
    source = Models(folder, {"q": tensors})
    parts = tuple((role, source.source("q", ref.tensor)) for role, ref in sorted(one.parts.items()))
    leaf = ex.Decoded(one.format, parts, one.parameters, one.shape, one.step)
    table = rows.format_rows([3, 199, rows.ZERO, rows.ZERO, 0, 1, 2, 128, 127])
    chosen = ex.Rows(leaf, table)
    mean = ex.Mean(leaf)
    spec = source.spec({"rows": ("F32", chosen), "mean": ("F32", mean)})
    with tuned(**SMALL):
        source.build(spec)
    found = source.load()
    picked = torch.stack([whole[i] if i >= 0 else whole[0] * 0 for i in rows.expand_rows(table)])
    assert torch.equal(found["rows"], picked)
    assert torch.allclose(found["mean"][0], whole.double().mean(dim=0).float())
    assert ShardSpec.from_json(json.loads(json.dumps(spec.to_json()))).tensors == spec.tensors


def test_a_format_is_part_of_the_digest() -> None:
    source = Models(Path("m"), {"q": MODELS["gptq"][1]})
    (one,) = logical_of(MODELS["gptq"][1], MODELS["gptq"][0]).values()
    parts = tuple((role, source.source("q", ref.tensor)) for role, ref in sorted(one.parts.items()))
    digests, names = set(), set()
    for offset in (0, 1):
        parameters = tuple(sorted((dict(one.parameters) | {"offset": offset}).items()))
        leaf = ex.Decoded(one.format, parts, parameters, one.shape)
        spec = source.spec({"w": ("F32", leaf)})
        digests.add(spec.digest)
        names.add(delta_name(ex.Delta(leaf, leaf, "F32"), spec.files))
    assert len(digests) == len(names) == 2


def test_memory() -> None:
    """It does not depend on the size, unless codes that lie scattered are held."""

    def needed(
        name: str, form: str, shape: tuple[int, int], code: str, **parts: tuple[int, ...]
    ) -> Any:
        made = tuple((r, ex.Source("m", "f", f"{name}.{r}", code, s)) for r, s in parts.items())
        parameters = (("bits", 4), ("block", (128, 128)), ("group", 128), ("offset", 1))
        return decoding.decoding_bytes(ex.Decoded(form, made, parameters, shape, 8))

    small, large = (
        needed("m", "fp8-block", (n, 1024), "F8_E4M3", codes=(n, 1024), scales=(n // 128, 8))
        for n in (1024, 1 << 20)
    )
    assert small == large
    parts = {"codes": (8192, 1024), "scales": (64, 8192), "zeros": (64, 1024)}
    assert needed("m", "awq", (8192, 8192), "I32", **parts) >= 8192 * 1024 * 4


def test_bytes_read_are_those_of_the_parts() -> None:
    source = Models(Path("m"), {"q": MODELS["fp8-block"][1]})
    (one,) = logical_of(MODELS["fp8-block"][1], MODELS["fp8-block"][0]).values()
    parts = tuple((role, source.source("q", ref.tensor)) for role, ref in sorted(one.parts.items()))
    leaf = ex.Decoded(one.format, parts, one.parameters, one.shape)
    assert bytes_read(leaf) == 200 * 130 + 4 * 4
    assert bytes_read(ex.Rows(leaf, "0+50")) == (200 * 130 + 4 * 4) // 4


#: The formats of matrices; what an adapter adds to others is refused elsewhere.
MATRICES = [case for case, (_, t) in MODELS.items() if any(n.startswith("m.") for n in t)]


class TestAdapters:
    """LoRA adapters over quantised models: added to what is decoded, not to codes."""

    def adapted(self, case: str, **adapter: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a model and an adapter of it; return the decoded weight and what is added."""
        value = models(case)["m.weight"]
        made = factors({"m": tuple(value.shape)}, rank=3)
        write_adapter(Path("models/lora"), made, **adapter)
        a, b = (made[f"base_model.model.m.lora_{part}.weight"].double() for part in "AB")
        return value.double(), 2 * b @ a

    @pytest.mark.parametrize("case", MATRICES)
    def test_every_format(self, case: str) -> None:
        value, added = self.adapted(case)
        recipe = ALONE | {"models": [{"model": "q+models/lora"}], "dtype": "float32"}
        made, found = built(recipe)
        torch.testing.assert_close(found["m.weight"].double(), value + added, atol=1e-4, rtol=1e-5)
        assert "quantization_config" not in json.loads((made.folder / "config.json").read_text())

    @pytest.mark.parametrize("case", ["gptq", "nf4", "fp8-block"])
    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    def test_a_task_vector_of_an_adapted_model(self, case: str, numerics: str) -> None:
        value, added = self.adapted(case)
        base = loaded(Path("models/base").glob("*.safetensors"))["m.weight"].double()
        models = [{"model": "q+models/lora", "parameters": {"weight": 0.5}}]
        _, found = built(TASK | {"models": models, "dtype": "float32"}, numerics=numerics)
        expected = base + 0.5 * (value + added - base)
        # there the decoded weight counts as a copy in bfloat16
        near = {} if numerics == "float32" else {"atol": 2e-2, "rtol": 2**-7}
        near = near or {"atol": 1e-4, "rtol": 1e-5}
        torch.testing.assert_close(found["m.weight"].double(), expected, **near)

    @pytest.mark.parametrize("case", ["gptq", "nf4", "fp8-block"])
    def test_an_adapted_base(self, case: str) -> None:
        value, added = self.adapted(case)
        base = loaded(Path("models/base").glob("*.safetensors"))["m.weight"].double()
        models = [{"model": "base", "parameters": {"weight": 0.25}}]
        recipe = TASK | {"base_model": "q+models/lora", "models": models, "dtype": "float32"}
        _, found = built(recipe)
        expected = 0.75 * (value + added) + 0.25 * base
        torch.testing.assert_close(found["m.weight"].double(), expected, atol=1e-4, rtol=1e-5)

    def test_dora(self) -> None:
        value = models("gptq")["m.weight"].double()
        made = factors({"m": tuple(value.shape)}, rank=3)
        norms = torch.rand(len(value)) + 0.5
        made["base_model.model.m.lora_magnitude_vector"] = norms
        write_adapter(Path("models/lora"), made, use_dora=True)
        a, b = (made[f"base_model.model.m.lora_{part}.weight"].double() for part in "AB")
        whole = value + 2 * b @ a
        expected = whole * (norms.double() / whole.norm(dim=1)).unsqueeze(1)
        _, found = built(ALONE | {"models": [{"model": "q+models/lora"}], "dtype": "float32"})
        torch.testing.assert_close(found["m.weight"].double(), expected, atol=1e-4, rtol=1e-5)
