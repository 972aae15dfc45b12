"""Algebra, plan and lock on small real checkpoints, without torch in the planner."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import llama, llama_shapes, random_tensors, save_model
from shardmerge.algebra import expression as ex
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.check.memory import check_bytes
from shardmerge.engine import tasks
from shardmerge.engine.memory import CUDA_BYTES, workspace_bytes
from shardmerge.plan import decide, planner
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import description_path, load_spec
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.lock import Lock

REPO = Path(__file__).parents[3]
FLAGSHIP = (REPO / "config/recipes/miquplus-midnight-70b.yaml").read_text()
NAMES = {
    "meta-llama/Llama-2-70b-hf": "l",
    "152334H/miqu-1-70b-sf": "q",
    "sophosympatheia/Midnight-Rose-70B-v2.0.3": "m",
}
LINEAR = """\
name: out
merge_method: linear
models:
  - model: q
    parameters: {weight: W1}
  - model: m
    parameters: {weight: W2}
dtype: float16
"""
#: A method that decomposes matrices.
ISO_C = """\
name: out
merge_method: iso_c
base_model: l
models: [{model: q}, {model: m}]
dtype: float16
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("lqm"):
        llama(Path(name), seed=i, layers=11, files=3 + i)
    return tmp_path


def plan(text: str, **config: Any) -> Any:
    Path("recipe.yaml").write_text(text)
    config.setdefault("sources", NAMES)
    settings = load_settings({"recipes": ["recipe.yaml"], **config})
    return load_plan(settings, say=lambda line: None)


def coefficients(build: Any) -> Any:
    text = Path(description_path(build.digest)).read_text()
    return json.loads(text)["coefficients"]


class TestFlagship:
    def test_folds_to_one_row(self, work: Path) -> None:
        (build,) = plan(FLAGSHIP).builds.values()
        table = coefficients(build)
        q, m, base = "152334H/miqu-1-70b-sf", "sophosympatheia/Midnight-Rose-70B-v2.0.3", None
        base = "meta-llama/Llama-2-70b-hf"
        gradient = [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0]
        for name, terms in table.items():
            parts = name.split(".")
            merged = parts[-2] in ("v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")
            g = gradient[int(parts[2])] if merged else 0
            assert terms == ([[q, 1.0], [f"{m} - {base}", 1.0]] if g else [[q, 1.0]]), name

    def test_needless_files_are_not_read(self, work: Path) -> None:
        found = plan(FLAGSHIP)
        assert {Path(p).name for p in found.unread} == {
            "model-00001-of-00005.safetensors",
            "model-00005-of-00005.safetensors",
        }

    def test_modes_of_deltas_have_one_identity(self, work: Path) -> None:
        digests = {
            mode: [j.digest for b in plan(FLAGSHIP, deltas=mode).builds.values() for j in b.shards]
            for mode in ("fuse", "store", "auto")
        }
        assert digests["fuse"] == digests["store"] == digests["auto"]
        assert not plan(FLAGSHIP, deltas="auto").deltas
        assert len(plan(FLAGSHIP, deltas="store").deltas) == 3

    def test_it_is_the_same_new_and_read_and_with_a_new_lock(self, work: Path) -> None:
        """To the order of its models, which Snakemake sees."""
        with_new_lock = repr(plan(FLAGSHIP))
        assert repr(plan(FLAGSHIP)) == with_new_lock
        shutil.rmtree(".shardmerge")
        assert repr(plan(FLAGSHIP)) == with_new_lock

    @pytest.mark.parametrize("method", ["linear", "ties", "slerp", "model_stock"])
    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    def test_jobs_get_what_their_hungriest_tensor_takes(
        self, work: Path, monkeypatch: pytest.MonkeyPatch, method: str, numerics: str
    ) -> None:
        text = (
            f"merge_method: {method}\nbase_model: l\ndtype: float16\n"
            "parameters: {t: 0.5, weight: 0.5, density: 0.5}\n"
            f"models: [{'' if method == 'slerp' else '{model: m}, '}{{model: l}}, {{model: q}}]\n"
        )
        seen = []
        make_task = tasks.make_task
        monkeypatch.setattr(tasks, "make_task", lambda *a: seen.append(a) or make_task(*a))
        jobs = plan(text, numerics=numerics).shards
        planned = len(seen)
        for job in jobs:
            found = tasks.make_tasks(load_spec(job.digest))
            assert job.memory == workspace_bytes(found)
            assert job.check_memory == check_bytes(found)
            assert job.torch == tasks.needs_torch(found)
        assert planned < (len(seen) - planned) / 2  # one tensor of each kind was looked at

    def test_jobs_on_a_card_get_memory_for_its_libraries(self, work: Path) -> None:
        text = LINEAR.replace("W1", "0.5").replace("W2", "0.5")
        assert plan(text, device="cuda:1").shards == plan(text).shards  # sums need no card
        host = [job.memory for job in plan(ISO_C).shards]
        jobs = plan(ISO_C, device="cuda:1").shards
        assert [job.memory for job in jobs] == [memory + CUDA_BYTES for memory in host]
        assert all(job.card and job.torch for job in jobs)

    def test_a_dry_run_plans_for_the_run_behind_it(self, work: Path) -> None:
        """However its lock is laid out: what counts is the file that is there."""
        plan(LINEAR.replace("W1", "0.5").replace("W2", "0.5"))
        lock = Path("recipe.lock.json")
        lock.write_text(json.dumps(json.loads(lock.read_text()), indent=3))
        settings = load_settings({"recipes": ["recipe.yaml"], "sources": NAMES})
        found = [decide.decide(settings, dry=dry, say=lambda line: None) for dry in (True, False)]
        assert found[0].path == found[1].path

    def test_planning_imports_no_torch(self, work: Path) -> None:
        Path("recipe.yaml").write_text(FLAGSHIP)
        code = (
            "import sys, json; from shardmerge.plan.decide import load_plan\n"
            "from shardmerge.recipe.settings import load_settings\n"
            f"s = load_settings({{'recipes': ['recipe.yaml'], 'sources': {NAMES!r}}})\n"
            "load_plan(s, say=print)\n"
            "bad = {'torch', 'transformers', 'datasets', 'lm_eval', 'numpy', 'llvmlite'}\n"
            "assert not bad & set(sys.modules), bad & set(sys.modules)"
        )
        env = {"PYTHONPATH": str(REPO / "scripts"), "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", code], check=True, env=env)


SWEEP = """\
name: s{0}
merge_method: task_arithmetic
base_model: l
models: [{{model: m, parameters: {{weight: 0.{0}}}}}]
dtype: float16
"""
DONOR = """\
name: donor
merge_method: task_arithmetic
parameters: {normalize: false, weight: 1}
base_model: l
models: [{model: l}, {model: q}, {model: m}]
dtype: float16
"""
SHARED = """\
name: s{0}
merge_method: linear
models: [{{model: q, parameters: {{weight: {1}}}}}, {{model: donor, parameters: {{weight: {0}}}}}]
dtype: float16
"""


def moved(found: Any) -> Any:
    """Return the bytes that a plan's jobs read and write."""
    return sum(job.bytes_read + job.bytes_written for job in (*found.shards, *found.deltas))


class TestAuto:
    """`auto` stores task vectors where that moves fewer bytes than to compute them in passing."""

    @staticmethod
    def variants(count: Any, shared: Any) -> Any:
        if not shared:
            return "---\n".join(SWEEP.format(i) for i in range(1, count + 1))
        rows = (SHARED.format(i, 10 - i) for i in range(1, count + 1))
        return "---\n".join([DONOR, *rows])

    @pytest.mark.parametrize(
        ("shared", "count", "stores"),
        # `base + w * (m - base)` reads the base in any case; of `q + w * (m - base)` three reads
        # become two, and to make the file takes two reads and a write.
        [(False, 2, False), (False, 9, False), (True, 2, False), (True, 3, False), (True, 4, True)],
    )
    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_moves_the_fewest_bytes(
        self, work: Path, numerics: Numerics, shared: bool, count: int, stores: bool
    ) -> None:
        text = self.variants(count, shared)
        found = {
            mode: plan(text, sources={}, numerics=numerics, deltas=mode)
            for mode in ("fuse", "store", "auto")
        }
        if numerics == FLOAT32:
            assert bool(found["auto"].deltas) == stores
        assert moved(found["auto"]) == min(moved(found["fuse"]), moved(found["store"]))
        assert len({tuple(j.digest for j in f.shards) for f in found.values()}) == 1


class TestLocks:
    """Two recipes over one model, of which one needs to know its tokens and the other does not."""

    @pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
    @pytest.mark.parametrize("head", [True, False])
    def test_what_is_noted_of_a_tokenizer_is_no_content(
        self, work: Path, order: tuple[Any, ...], head: bool
    ) -> None:
        for name in "qm":
            tokens = {"a": 0, "b": 1}
            model = {"type": "WordLevel", "vocab": tokens, "unk_token": "a"}
            Path(name, "tokenizer.json").write_text(
                json.dumps({"version": "1.0", "added_tokens": [], "model": model})
            )
        text = LINEAR.replace("W1", "1").replace("W2", "1")
        Path("one.yaml").write_text(text.replace("out", "one"))
        Path("two.yaml").write_text(text.replace("out", "two") + "tokenizer_source: base\n")
        settings = load_settings({"recipes": [f"{name}.yaml" for name in order]})
        found = load_plan(settings, say=lambda line: None)
        assert sorted(found.builds) == ["one", "two"]
        shutil.rmtree(".shardmerge")
        assert load_plan(settings, head=head, say=lambda line: None) == found

    def test_other_bytes_are(self, work: Path) -> None:
        plan(LINEAR.replace("W1", "1").replace("W2", "1"), sources={})
        source = Lock.from_json(json.loads(Path("recipe.lock.json").read_text()), "").sources["q"]
        assert source.has_contents_of(replace(source, tokens="0", chat_template="", revision="v1"))
        (name, file), *_ = source.files.items()
        other = dict(source.files) | {name: replace(file, sha256="0" * 64)}
        assert not source.has_contents_of(replace(source, files=other))
        assert not source.has_contents_of(replace(source, commit="0" * 40))


class TestTorch:
    """The plan says which jobs need torch, so that it is imported before the first of them."""

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    @pytest.mark.parametrize("deltas", ["fuse", "store"])
    def test_sums_do_not(self, work: Path, numerics: Numerics, deltas: str) -> None:
        found = plan(FLAGSHIP, numerics=numerics, deltas=deltas)
        assert found.shards
        assert not found.torch

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_methods_in_passes_do_in_mergekits_numerics(
        self, work: Path, numerics: Numerics
    ) -> None:
        text = LINEAR.replace("merge_method: linear", "merge_method: ties\nbase_model: l")
        text = text.replace("W1", "0.5, density: 0.5").replace("W2", "0.5, density: 0.5")
        found = plan(text, numerics=numerics, sources={})
        assert found.torch is (numerics == MERGEKIT)
        assert found == type(found).from_json(found.to_json())


class TestFolding:
    def expressions(self, text: str) -> dict[Any, Any]:
        (build,) = plan(text).builds.values()
        return {t.name: t.expression for j in build.shards for t in load_spec(j.digest).tensors}

    def test_zero_weight_is_a_copy(self, work: Path) -> None:
        found = self.expressions(LINEAR.replace("W1", "1").replace("W2", "0"))
        assert all(isinstance(e, ex.Source) and e.model == "q" for e in found.values())

    def test_normalised_weights(self, work: Path) -> None:
        found = self.expressions(LINEAR.replace("W1", "1").replace("W2", "3"))
        (a, _), (b, _) = found["model.norm.weight"].terms
        assert (a, b) == (0.25, 0.75)

    def test_task_vector_of_weight_one_is_the_model(self, work: Path) -> None:
        text = LINEAR.replace("linear", "task_arithmetic").replace("W1", "1").replace("W2", "0")
        found = self.expressions(text.replace("dtype", "base_model: l\ndtype"))
        assert all(isinstance(e, ex.Source) and e.model == "q" for e in found.values())

    def test_task_vector_of_other_weight_stays(self, work: Path) -> None:
        text = LINEAR.replace("linear", "task_arithmetic").replace("W1", "0.5").replace("W2", "0")
        found = self.expressions(text.replace("dtype", "base_model: l\ndtype"))
        (one, base), (half, delta) = found["lm_head.weight"].terms
        assert (one, half) == (1, 0.5)
        assert isinstance(delta, ex.Delta) and delta.base == base and delta.dtype == "F16"

    def test_all_weights_zero_is_refused(self, work: Path) -> None:
        text = LINEAR.replace("W1", "0").replace("W2", "0")
        with pytest.raises(UserError, match="sum to 0"):
            plan(text)


class TestChecks:
    text = LINEAR.replace("W1", "1").replace("W2", "1")

    def test_shapes_differ(self, work: Path) -> None:
        llama(Path("odd"), seed=9, layers=11, inter=32)
        with pytest.raises(UserError) as caught:
            plan(self.text.replace("model: m", "model: odd"))
        assert "'q'" in str(caught.value) and "'odd'" in str(caught.value)
        assert "layers.0.mlp" in str(caught.value)

    def test_missing_tensor_of_another_name(self, work: Path) -> None:
        shapes = {f"llm.{name}": shape for name, shape in llama_shapes(11).items()}
        save_model(Path("nested"), random_tensors(shapes, 3))
        with pytest.raises(UserError, match="under another name"):
            plan(self.text.replace("model: m", "model: nested"))

    def test_other_number_of_layers(self, work: Path) -> None:
        llama(Path("short"), seed=9, layers=7)
        with pytest.raises(UserError, match=r"has 11 layers; .* has 7 layers.*`slices`"):
            plan(self.text.replace("model: m", "model: short"))

    def test_missing_tensor(self, work: Path) -> None:
        shapes = llama_shapes(11)
        del shapes["model.layers.4.mlp.up_proj.weight"]
        save_model(Path("holey"), random_tensors(shapes, 3))
        with pytest.raises(UserError, match=r"layers\.4\.mlp\.up_proj.*'q'.*'holey'"):
            plan(self.text.replace("model: m", "model: holey"))

    def test_filter_without_tensor(self, work: Path) -> None:
        text = self.text.replace(
            "{weight: 1}", "{weight: [{filter: v_porj, value: 1}, {value: 1}]}", 1
        )
        with pytest.raises(UserError, match="v_proj"):
            plan(text)

    def test_missing_weight(self, work: Path) -> None:
        text = self.text.replace("{weight: 1}", "{weight: [{filter: v_proj, value: 1}]}", 1)
        with pytest.raises(UserError, match="no `weight` of model 'q'"):
            plan(text)

    def test_unknown_model(self, work: Path) -> None:
        with pytest.raises(UserError, match="neither a folder"):
            plan(self.text.replace("model: m", "model: nowhere"))

    def test_integers_are_copied(self, work: Path) -> None:
        shapes = {"model.norm.weight": (4,)}
        for i, name in enumerate("ab"):
            tensors = random_tensors(shapes, i) | {"steps": torch.tensor([7, 8])}
            save_model(Path(name), tensors)
        (build,) = plan(self.text.replace("q\n", "a\n").replace("m\n", "b\n")).builds.values()
        spec = load_spec(build.shards[0].digest)
        (steps,) = [t for t in spec.tensors if t.name == "steps"]
        assert isinstance(steps.expression, ex.Source) and steps.dtype == "I64"


class TestDecision:
    def test_it_tells_that_a_plan_must_be_made(self, work: Path) -> None:
        Path("recipe.yaml").write_text(FLAGSHIP)
        settings = load_settings({"recipes": ["recipe.yaml"], "sources": NAMES})
        locked = []

        def decided(**options: Any) -> list[bool]:
            locked.clear()
            decide.decide(
                settings,
                planning=lambda: locked.append(Path("recipe.lock.json").exists()),
                say=lambda line: None,
                **options,
            )
            return locked

        assert decided() == [False, True]
        assert decided() == decided(head=False) == []
        Path("recipe.yaml").write_text("# edited\n" + FLAGSHIP)
        assert decided() == [True]

    @pytest.mark.parametrize("allow_pickle", [False, True])
    @pytest.mark.parametrize("head", [True, False])
    def test_everything_is_read_once(
        self, work: Path, monkeypatch: pytest.MonkeyPatch, allow_pickle: bool, head: bool
    ) -> None:
        Path("recipe.yaml").write_text(FLAGSHIP)
        values = {"recipes": ["recipe.yaml"], "sources": NAMES, "allow_pickle": allow_pickle}
        settings = load_settings(values)
        before = decide.decide(settings, say=lambda line: None)
        calls = []
        names = dict.fromkeys(("read_text", "parse_recipe", "sha256_of"), decide)
        for name, module in (names | {"make_plan": planner}).items():
            real = getattr(module, name)

            def counted(*arguments: Any, name: Any = name, real: Any = real) -> Any:
                calls.append((name, str(arguments[-1])))
                return real(*arguments)

            monkeypatch.setattr(module, name, counted)
        decide._code()  # it is digested once a process
        calls.clear()
        assert decide.decide(settings, head=head, say=lambda line: None) == before
        expected = [("read_text", "recipe.yaml"), ("sha256_of", "recipe.lock.json")]
        expected += [("parse_recipe", "recipe.yaml")] if head or allow_pickle else []
        assert sorted(calls) == sorted(expected)
        assert Path(before.path).is_file()


class TestLock:
    text = LINEAR.replace("W1", "1").replace("W2", "1")

    def test_is_stable_and_has_no_path(self, work: Path) -> None:
        plan(self.text)
        first = Path("recipe.lock.json").read_text()
        Path("recipe.lock.json").unlink()
        plan(self.text)
        assert Path("recipe.lock.json").read_text() == first
        assert str(work) not in first

    def test_changed_source(self, work: Path) -> None:
        plan(self.text)
        path = Path("q/model-00002-of-00004.safetensors")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(UserError, match="another content"):
            plan(self.text)

    def test_touched_source(self, work: Path) -> None:
        before = plan(self.text)
        Path("q/model-00002-of-00004.safetensors").touch()
        assert plan(self.text) == before

    def test_new_source_leaves_the_others(self, work: Path) -> None:
        plan(self.text)
        old = json.loads(Path("recipe.lock.json").read_text())["sources"]["q"]
        plan(self.text.replace("model: m", "model: l"))
        new = json.loads(Path("recipe.lock.json").read_text())["sources"]
        assert new["q"] == old and sorted(new) == ["l", "q"]

    @pytest.mark.parametrize("name", ["../q/x.safetensors", "/etc/passwd", "a\\b", "./x", ""])
    def test_hostile_index(self, work: Path, name: str) -> None:
        index = Path("q/model.safetensors.index.json")
        table = json.loads(index.read_text())
        table["weight_map"]["lm_head.weight"] = name
        index.write_text(json.dumps(table))
        with pytest.raises(UserError, match="not a plain path"):
            plan(self.text)

    def test_link_out_of_the_folder(self, work: Path) -> None:
        path = Path("q/model-00001-of-00004.safetensors")
        path.rename(work / "elsewhere.safetensors")
        path.symlink_to(work / "elsewhere.safetensors")
        with pytest.raises(UserError, match="link out"):
            plan(self.text)

    def test_pickles_only(self, work: Path) -> None:
        Path("p").mkdir()
        Path("p/config.json").write_text("{}")
        Path("p/pytorch_model.bin").write_bytes(b"x")
        with pytest.raises(UserError, match=r"recipe\.yaml:6: p: has its weights only as pickles"):
            plan(self.text.replace("model: m", "model: p"))


class TestSeed:
    TEXT = (
        "name: out\nmerge_method: dare_linear\nbase_model: l\n"
        "models:\n  - model: q\n    parameters: {weight: 1, density: 0.5}\nSEED"
    )

    def made(self, seed: str) -> tuple[Any, ...]:
        (build,) = plan(self.TEXT.replace("SEED", seed)).builds.values()
        text = json.loads(Path(description_path(build.digest)).read_text())
        return {job.digest for job in build.shards}, text["seeds"]

    def test_it_is_in_the_digest_and_the_description(self, work: Path) -> None:
        plain, seeds = self.made("")
        assert seeds == {"out": [0]}
        assert self.made("parameters: {seed: 0}")[0] == plain
        other, seeds = self.made("parameters: {seed: 7}")
        assert seeds == {"out": [7]}
        assert not plain & other
