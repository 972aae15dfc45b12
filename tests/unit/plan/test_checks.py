"""Recipe checks: each tells what it is for, and nothing of a recipe that is sound."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.flagship_70b import MODELS, flagship_lock
from helpers.models import LLAMA, llama_shapes, random_tensors, save_model
from shardmerge.base.errors import UserError
from shardmerge.base.findings import CHECKS
from shardmerge.compose.architecture.rope import is_rotated, rope_of
from shardmerge.plan.decide import load_plan
from shardmerge.plan.planner import make_plan
from shardmerge.recipe.recipe import load_recipe
from shardmerge.recipe.settings import SCHEMA, load_settings
from shardmerge.sources.lock import Lock

REPO = Path(__file__).parents[3]
FLAGSHIP = REPO / "config" / "recipes" / "miquplus-midnight-70b.yaml"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        model(name)


def model(name: str, dtype: torch.dtype = torch.float16, tokens: str = "{}", **config: Any) -> None:
    """Write a tiny Llama with these changes to its config and its tokenizer."""
    values = LLAMA | {"num_hidden_layers": 3} | config
    folder = save_model(Path(name), random_tensors(llama_shapes(3), ord(name[0]), dtype), 1, values)
    (folder / "tokenizer.json").write_text(tokens)


def recipe(method: str, *models: object, name: str = "out", **document: object) -> str:
    """Return a document of models, each a name or (name, parameters)."""
    rows = [m if isinstance(m, tuple) else (m, {"weight": 1}) for m in models]
    entries = [{"model": name, "parameters": parameters} for name, parameters in rows]
    values = {"name": name, "merge_method": method, "models": entries, "dtype": "float16"}
    return json.dumps(values | document)


def warnings(text: str, **config: Any) -> list[str]:
    """Return what the checks say of a recipe."""
    Path("r.yaml").write_text(text)
    settings = load_settings({"recipes": ["r.yaml"], **config})
    return list(load_plan(settings, say=lambda line: None).warnings)


def checks(text: str, **config: Any) -> list[str]:
    """Return the names of the checks that find something."""
    return [re.search(r"\[([\w-]+)\]$", w)[1] for w in warnings(text, **config)]


def donor(*weights: object, **document: object) -> str:
    models = [(n, {"weight": w}) for n, w in zip("bc", weights or (1, 1), strict=True)]
    return recipe("task_arithmetic", *models, base_model="a", **document)


TYPO = {"lambda": [{"filter": "nowhere", "value": 1}, {"value": 1}]}
KEEP_QK = [{"filter": "q_proj", "value": 0}, {"filter": "k_proj", "value": 0}, {"value": 0.5}]


class TestRope:
    def test_blended_bases(self) -> None:
        model("b", rope_theta=1e6)
        (told,) = warnings(recipe("linear", "a", "b"))
        assert told.startswith("r.yaml:1: out: k_proj, q_proj of layers 0-2 blend models")
        assert "a (base 10000) and b (base 1e+06)" in told

    @pytest.mark.parametrize(
        "config",
        [
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            {"text_config": {"rope_theta": 5e5}},
        ],
    )
    def test_every_way_of_writing_it(self, config: dict[str, Any]) -> None:
        model("b", **config)
        assert checks(recipe("linear", "a", "b")) == ["rope-blend"]

    @pytest.mark.parametrize(
        "config",
        [
            {"rope_scaling": None},
            {"rope_scaling": {"rope_type": "default"}},
            {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
            {"rope_theta": 10000},
        ],
    )
    def test_equal_embeddings_written_otherwise(self, config: dict[str, Any]) -> None:
        model("b", **config)
        assert checks(recipe("linear", "a", "b")) == []

    def test_projections_left_alone(self) -> None:
        model("b", rope_theta=1e6)
        other = [{"filter": r["filter"], "value": 1} for r in KEEP_QK[:2]] + [{"value": 0.5}]
        text = recipe("linear", ("a", {"weight": KEEP_QK}), ("b", {"weight": other}))
        assert checks(text) == []

    def test_a_task_vector_of_other_bases(self) -> None:
        """As in the flagship's donor: what is added rotates otherwise than what it is added to."""
        model("b", rope_theta=1e6)
        assert checks(donor(), silence=["norms-summed"]) == ["rope-blend"]

    def test_a_method_that_is_no_sum(self) -> None:
        model("b", rope_theta=1e6)
        text = recipe("slerp", ("b", {}), base_model="a", parameters={"t": 0.5})
        assert checks(text) == ["rope-blend"]

    def test_rotated_modules(self) -> None:
        for name in ("self_attn.q_proj.weight", "self_attn.q_proj.bias", "attn.Wqkv.weight"):
            assert is_rotated(f"model.layers.0.{name}")
        for name in ("self_attn.v_proj.weight", "mlp.up_proj.weight", "self_attn.q_norm.weight"):
            assert not is_rotated(f"model.layers.0.{name}")
        assert not is_rotated("vision_tower.encoder.layers.0.self_attn.q_proj.weight")

    def test_rope_per_kind_of_layer(self) -> None:
        kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
        words = rope_of({"rope_parameters": kinds}, "m")
        assert words == "full_attention: base 1e+06, sliding_attention: base 10000"


class TestNorms:
    def test_summed(self) -> None:
        (told,) = warnings(donor())
        assert "input_layernorm, norm, post_attention_layernorm of layers 0-2 add" in told
        assert told.endswith("[norms-summed]")

    def test_also_as_a_linear_sum(self) -> None:
        weights = zip("bca", (1, 1, -1), strict=True)
        models = [(name, {"weight": weight}) for name, weight in weights]
        assert checks(recipe("linear", *models, parameters={"normalize": False})) == [
            "norms-summed"
        ]

    def test_a_mean_is_none(self) -> None:
        assert checks(recipe("linear", "a", "b")) == []
        assert checks(donor(0.5, 0.5)) == []

    def test_merged_by_ratios(self) -> None:
        assert checks(donor(), norm_merge="geometric") == []


def tokens(*names: str, **more: object) -> str:
    """Return a tokenizer.json."""
    vocab = {name: i for i, name in enumerate(names)}
    return json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}, **more})


class TestTokenizers:
    TEXT = recipe("linear", "a", "b")

    def test_other_tokens(self) -> None:
        model("a", tokens=tokens("x", "y"))
        model("b", tokens=tokens("y", "x"))
        (told,) = warnings(self.TEXT)
        assert "embed_tokens, lm_head blend models whose tokenizers differ: a, b" in told

    def test_equal_tokens_in_other_files(self) -> None:
        model("a", tokens=tokens("x", "y"))
        model("b", tokens=tokens("x", "y", post_processor={"type": "Sequence"}))
        assert checks(self.TEXT) == []

    def test_equal_tokens_of_another_kind_of_file(self) -> None:
        model("a", tokens=tokens("x", "y"))
        (Path("b") / "tokenizer.json").unlink()
        (Path("b") / "vocab.txt").write_text("x\ny\n")
        assert checks(self.TEXT) == []
        (Path("b") / "vocab.txt").write_text("x\nz\n")
        Path("r.lock.json").unlink()
        assert checks(self.TEXT) == ["tokenizer-blend"]

    def test_tokens_of_tokenizer_config_count(self) -> None:
        row = {"content": "<pad>", "special": True}
        settings = json.dumps({"added_tokens_decoder": {"2": row}})
        model("a", tokens=tokens("x", "y", added_tokens=[{"id": 2, "content": "<pad>"}]))
        model("b", tokens=tokens("x", "y"))
        (Path("b") / "tokenizer_config.json").write_text(settings)
        assert checks(self.TEXT) == []
        (Path("b") / "tokenizer_config.json").write_text(settings.replace("pad", "eot"))
        Path("r.lock.json").unlink()
        assert checks(self.TEXT) == ["tokenizer-blend"]

    def test_a_model_without_a_tokenizer(self) -> None:
        (Path("b") / "tokenizer.json").unlink()
        assert checks(self.TEXT) == []

    def test_what_the_lock_does_not_tell(self) -> None:
        """Models on the Hub, and locks that are older: files that differ are told as such."""
        model("b", tokens=tokens("x", "y", post_processor={}))
        model("a", tokens=tokens("x", "y"))
        assert checks(self.TEXT) == []
        lock = json.loads(Path("r.lock.json").read_text())
        del lock["sources"]["a"]["tokens"]
        Path("r.lock.json").write_text(json.dumps(lock))
        (told,) = warnings(self.TEXT)
        assert "files differ (whether their tokens do, the lock does not tell): a, b" in told

    def test_a_file_that_cannot_be_read(self) -> None:
        model("a", tokens=tokens("x", "y"))
        model("b", tokens="[]")
        (told,) = warnings(self.TEXT)
        assert "the lock does not tell" in told

    def test_a_lock_of_equal_files_holds_no_tokens(self) -> None:
        model("a", tokens=tokens("x", "y"))
        model("b", tokens=tokens("x", "y"))
        assert checks(self.TEXT) == []
        assert "tokens" not in json.loads(Path("r.lock.json").read_text())["sources"]["a"]

    def test_embeddings_of_one_model(self) -> None:
        model("b", tokens=tokens("x"))
        rows = [("embed_tokens", 1, 0), ("lm_head", 1, 0), (None, 1, 1)]
        text = recipe(
            "linear",
            *(
                (n, {"weight": [{"filter": r[0], "value": r[i]} for r in rows]})
                for i, n in enumerate("ab", 1)
            ),
        )
        assert checks(text) == []

    def test_the_vocabulary_file_counts_before_the_settings(self) -> None:
        model("b", tokens=tokens("x", post_processor={}))
        for name in "ab":
            (Path(name) / "tokenizer.model").write_bytes(b"pieces")
        assert checks(recipe("linear", "a", "b")) == []


class TestRange:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_wide_sources(self, dtype: Any) -> None:
        model("a", dtype)
        assert checks(recipe("linear", "a", "b", dtype="float32", out_dtype="float16")) == [
            "fp16-range"
        ]
        assert checks(recipe("linear", "a", "b", dtype="bfloat16")) == []


class TestWeights:
    def test_sum(self) -> None:
        text = recipe("linear", "a", "b", parameters={"normalize": False})
        (told,) = warnings(text)
        assert "sum to 2, not to 1" in told and told.endswith("[weights-sum]")

    def test_sums_that_vary(self) -> None:
        gradient = ("b", {"weight": [0, 1]})
        (told,) = warnings(recipe("linear", "a", gradient, parameters={"normalize": False}))
        assert "of layers 1-2 sum to 1.5 to 2, not to 1" in told

    def test_a_scaled_passthrough_is_meant(self) -> None:
        text = recipe("passthrough", ("a", {"scale": 0.5}))
        assert checks(text) == []

    def test_a_difference_within_a_recipe(self) -> None:
        """A stage may be a task vector, if the model that it goes into sums to 1."""
        first = recipe(
            "linear", "b", ("a", {"weight": -1}), name="diff", parameters={"normalize": False}
        )
        second = recipe("linear", "a", ("diff", {"weight": 0.5}), parameters={"normalize": False})
        assert checks(f"{first}\n---\n{second}") == []


def biased(name: str) -> None:
    """Write a model with a bias that the others lack."""
    shapes = llama_shapes(3) | {"model.layers.1.self_attn.q_proj.bias": (16,)}
    values = LLAMA | {"num_hidden_layers": 3}
    save_model(Path(name), random_tensors(shapes, 5), 1, values)


def tied(name: str) -> None:
    """Write a model whose embeddings are tied."""
    shapes = llama_shapes(3)
    del shapes["lm_head.weight"]
    values = LLAMA | {"num_hidden_layers": 3, "tie_word_embeddings": True}
    save_model(Path(name), random_tensors(shapes, 6), 1, values)


class TestMissing:
    @pytest.mark.parametrize("models", ["ab", "ba"])
    def test_a_bias_that_one_model_has(self, models: str) -> None:
        biased("b")
        (told,) = warnings(recipe("linear", *models))
        assert "q_proj of layer 1 have a bias in b but not in a." in told
        assert told.endswith("[missing-tensor]")

    def test_a_bias_that_all_have(self) -> None:
        for name in "ab":
            biased(name)
        assert checks(recipe("linear", "a", "b")) == []

    def test_a_stage_that_is_not_built(self) -> None:
        biased("b")
        first = recipe("linear", "a", "b", name="inner")
        second = recipe("linear", "inner", "c", name="outer")
        told = warnings(f"{first}\n---\n{second}")
        assert len([w for w in told if "have a bias in b but not in a." in w]) == 1
        assert len([w for w in told if "have a bias in inner but not in c." in w]) == 1

    @pytest.mark.parametrize("models", ["ab", "ba"])
    def test_one_model_is_tied(self, models: str) -> None:
        tied("b")
        (told,) = warnings(recipe("linear", *models))
        assert "lm_head blend the input embeddings of b, whose own are tied, with" in told
        assert told.endswith("[missing-tensor]")

    def test_all_are_tied(self) -> None:
        for name in "ab":
            tied(name)
        assert checks(recipe("linear", "a", "b")) == []

    def test_the_head_of_one_model(self) -> None:
        tied("b")
        whole = ("a", {"weight": 1})
        without = ("b", {"weight": [{"filter": "lm_head", "value": 0}, {"value": 1}]})
        assert checks(recipe("linear", whole, without)) == []


class TestUnused:
    def test_model_of_weight_zero(self) -> None:
        (told,) = warnings(recipe("linear", "a", ("b", {"weight": 0})))
        assert "takes nothing of b" in told and told.endswith("[unused-model]")

    def test_a_base_gives_its_config(self) -> None:
        assert checks(recipe("linear", "b", ("a", {"weight": 0}), base_model="a")) == []
        assert checks(donor(1, 0), silence=[]) == ["unused-model"]

    def test_a_gradient_that_is_somewhere_not_zero(self) -> None:
        assert checks(recipe("linear", "a", ("b", {"weight": [0, 0, 1]}))) == []

    def test_parameters(self) -> None:
        text = donor(0.5, 0.5, parameters={"t": 1, "density": 0.5})
        assert checks(text) == ["ignored-parameter"] * 2

    def test_norm_merge_without_task_arithmetic(self) -> None:
        text = recipe("linear", "a", "b")
        assert checks(text, norm_merge="geometric") == ["norm-merge-unused"]


class TestSilence:
    def test_every_check_can_be_silenced(self) -> None:
        model("b", torch.bfloat16, '{"model": 1}', rope_theta=1e6)
        weights = [{"filter": "nowhere", "value": 1}, {"value": 1}]
        text = donor(weights, 0, parameters={"t": 1}, random_seed=0)
        sources = [{"model": "a", "layer_range": [1, 1]}]
        stack = {"slices": [{"sources": sources}], "merge_method": "passthrough", "name": "a/b"}
        text += "\n---\n" + json.dumps(stack)
        models = [("a", {"weight": 1}), ("b", {"weight": -1.5}), ("out", {"weight": 1})]
        text += "\n---\n" + recipe(
            "linear", *models, ("c", {"weight": 0}), name="two", parameters={"normalize": False}
        )
        rows = [{"sources": [{"model": "d", "layer_range": [i, i + 1]}]} for i in (1, 0)]
        stacked = {"merge_method": "passthrough", "slices": rows, "dtype": "float16"}
        model("d", attn_layer_period=2)
        biased("e")
        model("f", quantization_config={"quant_method": "fp8"}, auto_map={"AutoModel": "own.M"})
        name = "model.layers.0.self_attn.q_proj.weight"
        codes = torch.zeros(16, 16, dtype=torch.float8_e4m3fn)
        coded = random_tensors(llama_shapes(3), 9) | {name: codes, f"{name}_scale": torch.ones(1)}
        save_model(Path("g"), coded, 1, LLAMA | {"num_hidden_layers": 3})
        model("h", num_hidden_layers=2, num_nextn_predict_layers=1)
        ahead = stacked | {"slices": [{"sources": [{"model": "h", "layer_range": [0, 2]}]}]}
        for name in "ij":
            model(name)
            Path(name, "1_Pooling").mkdir()
            Path(name, "1_Pooling", "config.json").write_text(json.dumps({"of": name}))
        found = set()
        lone = [recipe("linear", *names) for names in (("a", "e"), ("f",), ("g",), ("i", "j"))]
        lone.append(recipe("ties", ("b", {"weight": 1, "density": 1.2}), base_model="a"))
        fused = {"model.layers.0.self_attn.qkv_proj.weight": (32, 16)}
        save_model(Path("fused"), random_tensors(fused, 9), 1, LLAMA | {"model_type": "phi3",
                   "architectures": None, "num_hidden_layers": 1})  # fmt: skip
        keys = [{"filter": "v_proj", "value": 0.5}, {"value": 1}]
        lone.append(recipe("passthrough", ("fused", {"scale": keys})))
        alike = [{"source_model": "a", "positive_prompts": ["x"]}] * 2
        document = {"base_model": "b", "gate_mode": "hidden", "experts": alike}
        for name, word in (("a", "x"), ("b", "y")):
            table = {"model": {"type": "WordLevel", "vocab": {word: 0}}, "added_tokens": []}
            Path(name, "tokenizer.json").write_text(json.dumps(table))
        lone.append(json.dumps(document))
        lone.append(recipe("linear", "a", tokenizer={"source": "b", "approximate": "zero"}))
        seeing = random_tensors(llama_shapes(3), 9)
        seeing = {f"language_model.{name}": tensor for name, tensor in seeing.items()}
        seeing |= {"vision_tower.layers.0.fc.weight": torch.ones(2, 2)}
        config = {"model_type": "llava", "text_config": LLAMA | {"num_hidden_layers": 3}}
        save_model(Path("seeing"), seeing, 1, config)
        lone.append(recipe("linear", "seeing", "a"))
        for file in ("p/unet/model", "p/vae/model", "p/unet-ema/model"):
            save_model(Path(file).parent, {"w": torch.ones(2)}, 1)
        lone.append(recipe("passthrough", "p", tensors="same"))
        for one in (text, *map(json.dumps, (stacked, ahead)), *lone):
            told = set(checks(one))
            assert checks(one, silence=list(CHECKS)) == []
            for name in told:
                assert set(checks(one, silence=[name])) == told - {name}
            found |= told
        assert found | {"norm-merge-unused"} == set(CHECKS)

    def test_unknown_name(self) -> None:
        with pytest.raises(UserError, match="'rope-blnd' is not allowed") as caught:
            load_settings({"silence": ["rope-blnd"]})
        assert "Did you mean 'rope-blend'?" in str(caught.value)

    def test_the_schema_names_all(self) -> None:
        schema = json.loads(SCHEMA.read_text())["properties"]["silence"]
        assert schema["items"]["enum"] == list(CHECKS)


class TestTelling:
    def test_the_head_tells_at_every_start_and_jobs_do_not(self) -> None:
        Path("r.yaml").write_text(donor())
        settings = load_settings({"recipes": ["r.yaml"]})
        for head, count in ((True, 1), (True, 1), (False, 0)):
            said: list[str] = []
            load_plan(settings, head=head, say=said.append)
            assert sum(line.startswith("warning: ") for line in said) == count


class TestFlagship:
    @pytest.fixture(scope="class")
    def lock(self) -> Any:
        """Of the flagship, with the base frequencies that its models' config.json have."""
        bases = {name: 1e6 if "miqu" in name else 1e4 for name in MODELS}
        sources = flagship_lock().sources
        return Lock({n: replace(s, config={"rope_theta": bases[n]}) for n, s in sources.items()})

    def plan(self, lock: Any, **config: Any) -> Any:
        settings = load_settings({"recipes": [str(FLAGSHIP)], **config})
        return make_plan([(load_recipe(FLAGSHIP), lock)], settings, lambda k, _, f: f"{k}/{f}").plan

    def test_it_is_silent(self, lock: Lock) -> None:
        assert self.plan(lock).warnings == ()

    def test_its_donor_is_not(self, lock: Lock) -> None:
        told = self.plan(lock, stages=["_miquplus-midnight-70b"]).warnings
        assert [re.search(r"\[(.*)\]$", w)[1] for w in told] == ["rope-blend", "norms-summed"]
        assert "152334H/miqu-1-70b-sf (base 1e+06)" in told[0]
        assert "k_proj, q_proj of layers 0-79" in told[0]


class TestTellingOnce:
    """What is said of several documents is said once, with their names."""

    def test_documents_with_one_fault(self) -> None:
        variants = [donor(w, 0.5, name=f"v{w}", parameters=TYPO) for w in (1.1, 1.2, 1.3)]
        told = warnings("\n---\n".join(variants))
        (norms,) = [line for line in told if line.endswith("[norms-summed]")]
        filters = [line for line in told if line.endswith("[unmatched-filter]")]
        assert norms.startswith("r.yaml:1 and 2 more places: v1.1, v1.2, v1.3: ")
        assert len(filters) == 1 and ": v1.1, v1.2, v1.3: the filter 'nowhere'" in filters[0]

    def test_documents_with_faults_that_differ(self) -> None:
        plain = {"parameters": {"normalize": False}}
        weights = {f"v{w}": [("a", {"weight": w}), "b"] for w in (0.5, 0.7, 0.7000001)}
        text = "\n---\n".join(recipe("linear", *m, name=n, **plain) for n, m in weights.items())
        sums = [line for line in warnings(text) if line.endswith("[weights-sum]")]
        assert [line.split(": ")[:2] for line in sums] == [
            ["r.yaml:1", "v0.5"],
            ["r.yaml:3 and 1 more place", "v0.7, v0.7000001"],
        ]

    def test_a_stage_that_two_models_are_made_of(self) -> None:
        source = donor(0.1, 0.2, name="middle", parameters=TYPO)
        made = [recipe("passthrough", ("middle", {}), name=name) for name in ("x", "y")]
        (told,) = [w for w in warnings("\n---\n".join([source, *made])) if "unmatched" in w]
        assert told.startswith("r.yaml:1: middle: ")
