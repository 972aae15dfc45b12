"""What is kept of plans: never stale, never trusted when damaged, made anew by the next run."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.built_model import SOURCES, build_model, inputs_of
from helpers.models import llama
from shardmerge.algebra.expression import sources
from shardmerge.base.errors import UserError
from shardmerge.base.sealed import seal, unseal
from shardmerge.engine import build_shard
from shardmerge.package.verify import verify_model
from shardmerge.plan import files as planfiles
from shardmerge.plan.decide import decide
from shardmerge.plan.description import load_description
from shardmerge.plan.files import load_spec, plan_path
from shardmerge.plan.plan import Plan, read_plan
from shardmerge.recipe.settings import load_settings

LINEAR = """\
name: out
merge_method: linear
models:
  - model: lab/base
    parameters: {weight: 0.75}
  - model: SECOND
    parameters: {weight: 0.25}
dtype: float16
"""
OVERFLOWS = LINEAR.replace("0.75", "1.0e+7") + "parameters: {normalize: false}\n"

STACK = """\
name: out
merge_method: passthrough
slices:
  - sources: [{model: lab/base, layer_range: [0, 1]}]
  - sources: [{model: SECOND, layer_range: [1, 2]}]
dtype: float16
"""


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(planfiles.PLAN_VARIABLE, "")
    for seed, name in enumerate(SOURCES):
        llama(Path("models", name), seed, layers=2, files=2)


def plan(second: str = "lab/tuned", text: str = LINEAR, **config: Any) -> Plan:
    Path("recipe.yaml").write_text(text.replace("SECOND", second))
    folders = {
        name: f"models/{name}" for name in (*SOURCES, "lab/twin") if Path("models", name).exists()
    }
    settings = load_settings({"recipes": ["recipe.yaml"], "sources": folders, **config})
    return decide(settings, say=lambda line: None).plan


def contents() -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(planfiles.CACHE.rglob("*")) if p.is_file()}


def emptied(data: bytes, rng: random.Random) -> bytes:
    return b""


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def braces(data: bytes, rng: random.Random) -> bytes:
    return b"{}"


def nested(data: bytes, rng: random.Random) -> bytes:
    return b"[" * 100_000


def binary(data: bytes, rng: random.Random) -> bytes:
    return b"\xff\xfe\x00" + rng.randbytes(100)


DAMAGES = (emptied, cut, flipped, braces, nested, binary)


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("part", ["plans", "jobs", "builds", "specs"])
    def test_the_head_makes_it_anew(
        self, part: str, damage: Callable[[bytes, random.Random], bytes]
    ) -> None:
        made, before = plan(), contents()
        path = next(p for p in before if p.parent.name == part)
        for seed in range(1 if damage in (emptied, braces, nested) else 8):
            path.write_bytes(damage(before[path], random.Random(seed)))
            assert plan() == made
            assert contents() == before

    @pytest.mark.parametrize("part", ["plans", "jobs", "builds", "specs"])
    def test_gone_or_another_plans(self, part: str) -> None:
        plan(text=LINEAR.replace("0.25", "0.5"))
        other = next(planfiles.CACHE.glob(f"{part}/*"))
        foreign = other.read_bytes()
        made = plan()
        path = next(p for p in planfiles.CACHE.glob(f"{part}/*") if p.read_bytes() != foreign)
        whole = path.read_bytes()
        for damage in (path.unlink, lambda: path.write_bytes(foreign)):
            damage()
            assert plan() == made
            assert path.read_bytes() == whole

    def test_sealed_nonsense(self) -> None:
        """Whole by its own digest, yet no plan: as a version with other ideas would leave it."""
        made, before = plan(), contents()
        for part in ("plans", "jobs"):
            path = next(p for p in before if p.parent.name == part)
            for value in ({}, [], None, 1, {"specs": 1, "builds": {}}, {"builds": [], "specs": {}}):
                path.write_text(seal(value, path.stem))
                assert plan() == made
                assert contents() == before or part == "jobs"

    def test_a_job_says_what_to_do(self) -> None:
        (build,) = plan().builds.values()
        for path in [*planfiles.CACHE.glob("specs/*"), *planfiles.CACHE.glob("builds/*")]:
            path.write_bytes(flipped(path.read_bytes(), random.Random(3)))
        for call in (
            lambda: load_spec(build.shards[0].digest),
            lambda: load_description(build.digest),
        ):
            with pytest.raises(UserError, match=r"damaged[\s\S]*snakemake again"):
                call()

    def test_a_job_without_its_plan(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (build,) = plan().builds.values()
        for key in ("", "0" * 64, "../../etc"):
            monkeypatch.setenv(planfiles.PLAN_VARIABLE, key)
            with pytest.raises(UserError, match="snakemake again"):
                load_spec(build.shards[0].digest)

    def test_a_cache_that_cannot_be_written(self) -> None:
        planfiles.CACHE.mkdir(exist_ok=True)
        (planfiles.CACHE / "specs").write_text("in the way")
        with pytest.raises(UserError, match="specs"):
            plan()
        assert not (planfiles.CACHE / "plans").exists()


class TestIdentities:
    """`.shardmerge/identities.json`: what of it is damaged is read from the files again."""

    ROWS = (None, 3, [], [1, 2], [1, 2, 3, None, None], [1, 2, 3, "x", None], [[], {}, "a", 1, 2])

    @pytest.mark.parametrize("row", [*ROWS, "right"])
    def test_odd_rows(self, row: Any) -> None:
        made = plan()
        path = planfiles.CACHE / "identities.json"
        text = path.read_text()
        whole = unseal(text, path.stem, "")
        rows = {key: known if row == "right" else row for key, known in whole.items()}
        path.write_text(seal(rows, path.stem))
        assert plan() == made
        assert path.read_text() == text

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damage(self, damage: Callable[[bytes, random.Random], bytes]) -> None:
        made = plan()
        path = planfiles.CACHE / "identities.json"
        whole = path.read_bytes()
        for seed in range(4):
            path.write_bytes(damage(whole, random.Random(seed)))
            assert plan() == made
            assert path.read_bytes() == whole


class TestSeal:
    def test_round_trip_keeps_order_and_text(self) -> None:
        value = {"b": [1.5, None], "a": "\ud800 é \u202e"}
        text = seal(value, "k")
        assert unseal(text, "k", "w") == value
        assert list(unseal(text, "k", "w")) == ["b", "a"]
        assert json.loads(text)["content"] == value

    def test_every_character_counts(self) -> None:
        text = seal({"a": [1, 2]}, "k")
        for at in range(len(text)):
            with pytest.raises(UserError, match="damaged"):
                unseal(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :], "k", "w")
        with pytest.raises(UserError):
            unseal(text, "another", "w")


class TestStale:
    """What determines a shard's bytes names the job; all else is its plan's own."""

    def test_files_are_called_by_their_content(self) -> None:
        plan()
        for path in planfiles.CACHE.glob("specs/*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem

    def test_what_may_be_infinite_counts_at_once(self) -> None:
        found = {}
        for allow in (False, True, False):
            made = plan(text=OVERFLOWS, allow_nonfinite=allow)
            (build,) = made.builds.values()
            spec = load_spec(build.shards[0].digest)
            assert spec.allow_nonfinite is allow
            found[allow] = build
        assert [j.digest for j in found[True].shards] == [j.digest for j in found[False].shards]
        assert found[True].digest != found[False].digest  # it is verified anew

    def test_infinities_that_were_let_pass_are_refused_later(self) -> None:
        text = OVERFLOWS.replace("SECOND", "lab/tuned")
        with pytest.raises(UserError, match="infinite or NaN"):
            build_model(text)
        made = build_model(text, allow_nonfinite=True)

        def verify(built: Any) -> dict[str, Any]:
            checks, records = built.records("checks"), built.records()
            return verify_model(
                built.build.digest, built.description, built.folder, checks, records
            )

        assert verify(made).passed is True
        plan(text=text, allow_nonfinite=False)
        made.description = replace(made.description, allow_nonfinite=False)
        with pytest.raises(UserError, match=r"infinite or NaN[\s\S]*allow_nonfinite: true"):
            verify(made)

    def test_infinities_in_stored_task_vectors(self, tmp_path: Path) -> None:
        made = build_model(LINEAR.replace("SECOND", "lab/tuned"))
        check = json.loads(next(iter(made.records("checks"))).read_text()) | {
            "shard": "delta.safetensors",
            "sha256": "0" * 64,
        }
        for kind, row in {
            "checks": check,
            "records": {"sha256": "0" * 64, "size": 1, "nonfinite": {"x": 2}},
        }.items():
            path = Path("results/deltas/a-minus-b", kind, "delta.json")
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(row))
        args = (made.build.digest, made.description, made.folder, made.records("checks"))
        deltas = [Path("results/deltas/a-minus-b/checks/delta.json")]
        with pytest.raises(UserError, match=r"delta.safetensors, tensor 'x'"):
            verify_model(*args, made.records(), deltas)

    def test_sources_of_equal_bytes(self) -> None:
        """Two names of one content, then one name: the same job, with other files to read."""
        shutil.copytree("models/lab/base", "models/lab/twin")
        found, written = [], []
        for second in ("lab/twin", "lab/base", "lab/twin"):
            (build,) = plan(second, STACK, max_shard_size="1GB").builds.values()
            (job,) = build.shards
            spec = load_spec(job.digest)
            files, _ = inputs_of(job, spec)  # fails where job and specification disagree
            build_shard(spec, files, Path("out.safetensors"))
            written.append((job.digest, Path("out.safetensors").read_bytes()))
            found.append({s.model for t in spec.tensors for s in sources(t.expression)})
        assert found == [{"lab/base", "lab/twin"}, {"lab/base"}, {"lab/base", "lab/twin"}]
        assert len(set(written)) == 1

    def test_a_plan_is_read_as_it_was_made(self) -> None:
        made = plan()
        (path,) = planfiles.CACHE.glob("plans/*")
        assert path == plan_path(path.stem)
        assert read_plan(path) == made
