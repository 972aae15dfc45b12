"""Plans of merges of checkpoints: their files, what is copied, what is told and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from helpers.planned import described
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.plan.decide import decide, load_plan
from shardmerge.plan.files import load_spec
from shardmerge.plan.plan import Build, Plan
from shardmerge.recipe.settings import load_settings
from shardmerge.report.explain import explain
from shardmerge.run.targets import Targets
from shardmerge.sweep.configured import read_sweeps, with_tasks

STEM = "diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(path: str, *, dtype: torch.dtype = torch.float16, **shapes: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({n.replace("__", "."): torch.ones(s, dtype=dtype) for n, s in shapes.items()}, path)


def document(*models: str, **more: Any) -> dict[str, Any]:
    rows = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return {"name": "out", "merge_method": "linear", "models": rows} | more


def plan_of(*documents: dict[str, Any], **config: Any) -> Plan:
    Path("recipe.yaml").write_text("\n---\n".join(map(json.dumps, documents)))
    settings = load_settings({"recipes": ["recipe.yaml"], **config})
    return load_plan(settings, say=lambda line: None)


def build_of(*documents: dict[str, Any], **config: Any) -> Build:
    return plan_of(*documents, **config).builds["out"]


def shards(build: Build) -> list[str]:
    return [job.output.removeprefix("results/out/model/") for job in build.shards]


def refused(*documents: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        plan_of(*documents)
    return str(caught.value)


def pipeline(folder: str, *, sharded: bool = True) -> None:
    """Write a pipeline whose transformer lies in two files."""
    put(f"{folder}/vae/{STEM}.safetensors", conv=(4, 4))
    put(f"{folder}/text_encoder/model.safetensors", conv=(3, 2))
    names = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for number, name in enumerate(names):
        put(f"{folder}/transformer/{name}", **{f"block{number}": (4, 8)})
    table = {f"block{i}": name for i, name in enumerate(names)}
    index = Path(folder, "transformer", f"{STEM}.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": table}))
    for name in ("model_index.json", "vae/config.json", "scheduler/scheduler_config.json"):
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"of": folder}))


class TestFiles:
    def test_one_file_is_one_file(self) -> None:
        for name in "ab":
            put(f"lab/{name}.safetensors", w=(2, 3))
        build = build_of(document("lab/a.safetensors", "lab/b.safetensors"))
        assert (shards(build), build.files, build.indexes) == (["model.safetensors"], {}, [])
        assert build.checkpoint

    def test_a_union_of_files_is_one_file(self) -> None:
        """What the first file lacks stands behind its own tensors, not in a file of its own."""
        put("a.safetensors", u=(2, 3), z=(1,))
        put("b.safetensors", a=(4,), u=(2, 3), y=(2,))
        put("c.safetensors", u=(2, 3), x=(5,))
        made = document(*(f"{name}.safetensors" for name in "abc"), tensors="union")
        assert shards(build_of(made)) == ["model.safetensors"]
        description, _ = described(made)
        names = list(description["shards"][0]["tensors"])
        assert (names[:2], set(names[2:])) == (["u", "z"], {"a", "x", "y"})

    def test_a_pipeline_keeps_its_files_and_names(self) -> None:
        pipeline("a")
        pipeline("b")
        build = build_of(document("a", "b", tensors="same"))
        assert shards(build) == [
            "text_encoder/model.safetensors",
            f"transformer/{STEM}-00001-of-00002.safetensors",
            f"transformer/{STEM}-00002-of-00002.safetensors",
            f"vae/{STEM}.safetensors",
        ]
        assert build.indexes == [f"transformer/{STEM}.safetensors.index.json"]
        assert build.files == {
            name: f"a/{name}"
            for name in ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json")
        }

    def test_other_files_are_the_bases(self) -> None:
        pipeline("a")
        pipeline("b")
        made = document("a", base_model="b", tensors="same", merge_method="task_arithmetic")
        assert set(build_of(made).files.values()) == {
            f"b/{name}"
            for name in ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json")
        }

    def test_a_part_alone_keeps_its_name_and_configuration(self) -> None:
        for name in "ab":
            put(f"{name}/{STEM}.safetensors", w=(2, 3))
            Path(name, "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        build = build_of(document("a", "b", tensors="same"))
        assert shards(build) == [f"{STEM}.safetensors"]
        assert build.files == {"config.json": "a/config.json"}

    @pytest.mark.parametrize("small", [(), ("b",), ("a", "b")])
    def test_one_part_of_a_pipeline_keeps_its_folder(self, small: tuple[str, ...]) -> None:
        """Whether or not there is a small file beside it, which made it a pipeline before."""
        for name in "ab":
            put(f"{name}/unet/{STEM}.safetensors", w=(2, 3))
        for name in small:
            Path(name, "unet/config.json").write_text("{}")
        weight = [{"filter": "unet/", "value": 0.5}, {"value": 0}]
        made = document("a", "b", tensors="same", parameters={"weight": weight})
        for row in made["models"]:
            del row["parameters"]
        build = build_of(made)
        assert shards(build) == [f"unet/{STEM}.safetensors"]
        assert not load_plan(load_settings({"recipes": ["recipe.yaml"]}), say=print).warnings
        file = f"unet/{STEM}.safetensors"
        named = build_of(document(f"a/{file}", f"b/{file}"))
        assert shards(named) == [f"{STEM}.safetensors"]

    def test_shards_have_a_size(self) -> None:
        for name in "ab":
            put(f"{name}.safetensors", u=(1000,), v=(1000,), w=(1000,))
        build = build_of(document("a.safetensors", "b.safetensors"), max_shard_size="4000")
        assert shards(build) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        assert build.indexes == ["model.safetensors.index.json"]

    def test_a_file_under_sources(self) -> None:
        for name in "ab":
            put(f"lab/{name}+x@1.safetensors", w=(2, 3))
        sources = {name: f"lab/{name}+x@1.safetensors" for name in "ab"}
        build = build_of(document("a", "b", tensors="same"), sources=sources)
        assert build.shards[0].sources == tuple(sources.values())

    def test_transformers_and_benchmarks_pass_it_over(self) -> None:
        for name in "ab":
            put(f"{name}.safetensors", w=(2, 3))
        made = document("a.safetensors", "b.safetensors")
        config = {"exports": {"gguf": {"types": ["f16"]}}, "publish": {"repository": "o/{name}"}}
        targets = Targets(load_settings({"recipes": ["recipe.yaml"], **config}), plan_of(made))
        assert targets.loaded() == targets.tables() == targets.cards() == []
        assert targets.exports.packages() == targets.exports.receipts() == []
        assert targets.publishing.receipts() == ["results/out/published.json"]
        assert "results/out/model/config.json" not in targets.package_files("out")


class TestTypes:
    def test_each_tensor_keeps_its_own(self) -> None:
        for name in "ab":
            put(f"m{name}/one.safetensors", u=(2,))
            put(f"m{name}/two.safetensors", dtype=torch.bfloat16, v=(2,))
            put(f"m{name}/three.safetensors", dtype=torch.int64, n__num_batches_tracked=())
        description, _ = described(document("ma", "mb", tensors="same"))
        rows = {n: t[0] for shard in description["shards"] for n, t in shard["tensors"].items()}
        assert rows == {"u": "F16", "v": "BF16", "n.num_batches_tracked": "I64"}
        assert description["checkpoint"] is True
        assert description.get("dtype") is None

    def test_codes_are_refused(self) -> None:
        for name in "ab":
            put(f"{name}.safetensors", dtype=torch.uint8, w=(2,))
        assert "may be codes of quantised weights" in refused(
            document("a.safetensors", "b.safetensors")
        )


class TestDiffering:
    def test_shapes_are_told_side_by_side(self) -> None:
        put("a.safetensors", u=(2, 3), v=(4,), w=(1,))
        put("b.safetensors", u=(2, 5), v=(7,), w=(1,))
        told = refused(document("a.safetensors", "b.safetensors"))
        assert "2 tensors of the same name have other shapes" in told
        assert "'u' is [2, 3] in 'a.safetensors', [2, 5] in 'b.safetensors'" in told

    def test_a_tensor_that_one_lacks(self) -> None:
        put("a.safetensors", u=(2,), v=(4,), w=(4,))
        put("b.safetensors", u=(2,))
        told = refused(document("a.safetensors", "b.safetensors"))
        assert "tensor 'v' is in 'a.safetensors', but not in 'b.safetensors', and so 1 more" in told
        assert "`tensors: intersection`" in told

    def test_nothing_in_common(self) -> None:
        put("a.safetensors", u=(2,))
        put("b.safetensors", v=(2,))
        made = document("a.safetensors", "b.safetensors", tensors="intersection")
        assert "no tensor is in all of the checkpoints" in refused(made)

    def test_what_a_union_does_is_told(self) -> None:
        put("a.safetensors", u=(2,), v=(4,))
        put("b.safetensors", u=(2,), w=(4,))
        made = document("a.safetensors", "b.safetensors", tensors="union")
        _, warnings = described(made, silence=["weights-sum"])
        assert len(warnings) == 2
        assert "1 tensor ('v') is not in all checkpoints, and merged from a.safetens" in warnings[0]

    def test_weights_that_are_no_part_are_told(self) -> None:
        for name in "ab":
            put(f"{name}/unet/{STEM}.safetensors", u=(2,))
            Path(name, "unet/config.json").write_text("{}")
            put(f"{name}/.cache/x.safetensors", u=(2,))
        put(f"b/unet/{STEM}.fp16.safetensors", u=(2,))
        put(f"b/unet-ema/{STEM}.safetensors", u=(2,))
        put("b/all.safetensors", u=(2,))
        Path("b/model_index.json").write_text("{}")
        description, (warning,) = described(document("a", "b", tensors="same"))
        assert list(description["shards"][0]["tensors"]) == ["u"]
        lost = f"all.safetensors, unet-ema/{STEM}.safetensors, unet/{STEM}.fp16.safetensors"
        assert f"3 files of weights ({lost}) in b are no part of the checkpoint" in warning
        again = load_plan(load_settings({"recipes": ["recipe.yaml"]}), say=lambda line: None)
        assert list(again.warnings) == [warning]
        Path("b/all.safetensors").unlink()
        load_plan(load_settings({"recipes": ["recipe.yaml"]}), say=lambda line: None)

    def test_weights_of_which_none_is_a_part(self) -> None:
        for name in "ab":
            put(f"{name}/unet-ema/{STEM}.safetensors", u=(2,))
        told = refused(document("a", "b", tensors="same"))
        assert "no safetensors files that belong to it" in told
        assert f"Merge a file by itself, such as unet-ema/{STEM}.safetensors" in told

    def test_what_an_intersection_leaves_out_is_told(self) -> None:
        put("a.safetensors", u=(2,), v=(4,))
        put("b.safetensors", u=(2,))
        made = document("a.safetensors", "b.safetensors", tensors="intersection")
        _, (warning,) = described(made)
        assert "1 tensor ('v') is in a.safetensors, but not in the result" in warning

    def test_a_filter_that_matches_nothing_is_told(self) -> None:
        for name in "ab":
            put(f"{name}.safetensors", lora_unet_mid__alpha=(2,))
        weight = [{"filter": "text_encoder", "value": 1}, {"value": 0.5}]
        made = document("a.safetensors", "b.safetensors", parameters={"weight": weight})
        for row in made["models"]:
            del row["parameters"]
        _, (warning,) = described(made)
        assert "the filter 'text_encoder' matches no tensor" in warning

    def test_heads_and_embeddings_mean_nothing(self) -> None:
        """A name such as `lm_head` is one as any other: nothing is tied, untied or left out."""
        names = {"lm_head__weight": (5, 2), "model__layers__0__rotary_emb__inv_freq": (3,)}
        put("a.safetensors", **names)
        put("b.safetensors", lm_head__weight=(5, 2))
        assert "inv_freq" in refused(document("a.safetensors", "b.safetensors"))


def test_documents_are_folded() -> None:
    for name in "abc":
        put(f"{name}.safetensors", w=(2, 3))
    first = document("a.safetensors", "b.safetensors", name="first")
    second = document("first", "c.safetensors", tensors="same")
    plan = plan_of(first, second)
    assert list(plan.builds) == ["out"]
    assert len(plan.builds["out"].shards[0].sources) == 3


def test_a_gap_in_norm_merge() -> None:
    for name in "ab":
        put(f"{name}.safetensors", norm__weight=(3,))
    made = document("a.safetensors", base_model="b.safetensors", merge_method="task_arithmetic")
    Path("recipe.yaml").write_text(json.dumps(made))
    with pytest.raises(UserError, match="no norms are known"):
        plan_of(made, norm_merge={"out": "geometric"})


class TestExplain:
    def test_of_files_at_hand(self) -> None:
        put("a.safetensors", u=(2,), v=(3,))
        put("b.safetensors", u=(2,))
        made = document("a.safetensors", "b.safetensors", tensors="intersection")
        Path("recipe.yaml").write_text(json.dumps(made))
        found = explain("recipe.yaml", {n: n for n in ("a.safetensors", "b.safetensors")})
        assert list(found.models["out"].frame.cells) == ["u"]

    def test_nothing_is_assumed_of_a_checkpoint(self) -> None:
        Path("recipe.yaml").write_text(json.dumps(document("o/m:x.safetensors", "o/n", "o/p")))
        with pytest.raises(UserError, match=r"nothing is known of the checkpoint 'o/m:x\.safet"):
            explain("recipe.yaml", {})


class TestFloat8:
    """Values where no scales are beside them, else codes."""

    def put(self, name: str, **halves: Any) -> None:
        codes = {n: torch.ones(2, 3).to(torch.float8_e4m3fn) for n in ("a.weight", "b.weight")}
        rest = {n.replace("__", "."): torch.ones(s).half() for n, s in halves.items()}
        save_file(codes | rest, f"{name}.safetensors")

    def made(self) -> dict[str, Any]:
        return document("a.safetensors", "b.safetensors")

    def types(self, made: dict[str, Any]) -> dict[str, str]:
        return {
            tensor.name: tensor.dtype
            for job in build_of(made).shards
            for tensor in load_spec(job.digest).tensors
        }

    @pytest.mark.parametrize(
        "beside",
        ["a__bias", "scale_shift_table", "a__norm__scale", "logit_scale", "a__rescaler__weight"],
    )
    def test_values(self, beside: str) -> None:
        for name in "ab":
            self.put(name, **{beside: (2,)})
        assert self.types(self.made())["a.weight"] == "BF16"
        made = self.made() | {"dtype": "float32", "out_dtype": "float16"}
        assert self.types(made)["a.weight"] == "F16"

    @pytest.mark.parametrize(
        "beside",
        [
            *("a__weight_scale", "a__weight_scale_inv", "a__scale_weight", "a__weight_scale_2"),
            *("a__scale", "a__scales", "a__weight__scale", "a__comfy_quant", "scaled_fp8"),
            "model__scaled_fp8",
        ],
    )
    def test_codes(self, beside: str) -> None:
        for name in "ab":
            self.put(name, **{beside: (2,)})
        told = refused(self.made())
        assert "tensor 'a.weight' cannot be merged: it has the type F8_E4M3 in 'a.saf" in told
        assert "scales" in told

    def test_the_scale_of_a_norm_that_is_one_itself(self) -> None:
        for name in "ab":
            put(f"{name}.safetensors", dtype=torch.float8_e5m2, norm__scale=(4,), alpha=())
        assert self.types(self.made()) == {"alpha": "BF16", "norm.scale": "BF16"}


class TestQuantised:
    """Single files whose weights are stored as codes, as people have them, and as float8 values."""

    #: Of each format what a layer of 64 x 64 is stored as.
    FORMATS: ClassVar = {
        "gptq": {"a.qweight": ("int32", 8, 64), "a.qzeros": ("int32", 1, 8),
                 "a.scales": ("float16", 1, 64), "a.g_idx": ("int32", 64)},
        "awq": {"a.qweight": ("int32", 64, 8), "a.qzeros": ("int32", 1, 8),
                "a.scales": ("float16", 1, 64)},
        "bitsandbytes 4": {"a.weight": ("uint8", 2048, 1), "a.weight.absmax": ("float32", 64),
                           "a.weight.quant_map": ("float32", 16),
                           "a.weight.quant_state.bitsandbytes__nf4": ("uint8", 80)},
        "bitsandbytes 8": {"a.weight": ("int8", 64, 64), "a.SCB": ("float32", 64)},
        "float8": {"a.weight": ("float8_e4m3fn", 64, 64), "a.weight_scale": ("float32", 1)},
        "mxfp4": {"a.weight_blocks": ("uint8", 64, 2, 16), "a.weight_scales": ("uint8", 64, 2)},
        "nvfp4": {"a.weight_packed": ("uint8", 64, 32), "a.weight_scale": ("float8_e4m3fn", 64, 4),
                  "a.weight_global_scale": ("float32", 1)},
        "modelopt": {"a.weight": ("uint8", 64, 32), "a.weight_scale": ("float8_e4m3fn", 64, 4),
                     "a.weight_scale_2": ("float32", 1), "a.input_scale": ("float32", 1)},
    }  # fmt: skip

    def put(self, name: str, parts: dict[str, tuple[Any, ...]], value: int) -> None:
        made = {
            tensor: torch.full(shape, value).to(getattr(torch, dtype))
            for tensor, (dtype, *shape) in parts.items()
        }
        save_file(made | {"a.bias": torch.ones(64).half()}, f"{name}.safetensors")

    @pytest.mark.parametrize("form", FORMATS)
    def test_codes_are_not_averaged(self, form: str) -> None:
        for name, value in (("a", 1), ("b", 2)):
            self.put(name, self.FORMATS[form], value)
        told = refused(document("a.safetensors", "b.safetensors"))
        assert "may be codes of quantised weights" in told
        assert "Merge models whose weights are stored as floats of 16 bits or more" in told

    @pytest.mark.parametrize("form", FORMATS)
    def test_what_one_file_alone_has_keeps_its_types(self, form: str) -> None:
        parts = self.FORMATS[form]
        self.put("a", parts, 1)
        put("b.safetensors", other=(3,))
        description, _ = described(document("a.safetensors", "b.safetensors", tensors="union"))
        found = {n: t[0] for shard in description["shards"] for n, t in shard["tensors"].items()}
        for name, (dtype, *_) in parts.items():
            assert DTYPES[found[name]].name == dtype, name

    def test_values_are_decoded_with_a_warning(self) -> None:
        for name, value in (("a", 1), ("b", 2)):
            self.put(name, {"a.weight": ("float8_e4m3fn", 4, 4)}, value)
        _, warnings = described(document("a.safetensors", "b.safetensors"))
        for name, warning in zip("ab", warnings, strict=True):
            assert f"{name}.safetensors is quantised (float8)" in warning
            assert warning.endswith("[quantised-source]")


def test_a_sweep_measures_none() -> None:
    for name in "ab":
        put(f"{name}.safetensors", w=(2, 3))
    made = document("a.safetensors", "b.safetensors")
    made["parameters"] = {"weight": "${w}"}
    for row in made["models"]:
        del row["parameters"]
    Path("template.yaml").write_text(json.dumps(made).replace('"${w}"', "${w}"))
    space = {"w": {"grid": [0.3, 0.4]}}
    sweep = {"recipe": "template.yaml", "space": space, "objectives": {"b/acc": "maximize"}}
    settings = load_settings({"sweep": sweep})
    sweeps = read_sweeps(settings)
    settings = with_tasks(settings, sweeps)
    variants = [v for one in sweeps for v in one.variants("results")]
    plan = decide(settings, variants, say=lambda line: None).plan
    with pytest.raises(UserError, match="lm-eval measures none of these"):
        Targets(settings, plan, sweeps)
