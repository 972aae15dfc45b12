"""The jobs of quantised shards: what they read, what makes them run again, what they need."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shardmerge.plan.paths import Paths
from shardmerge.plan.plan import Build, ShardJob
from shardmerge.run import exported_shards
from shardmerge.run.exported_shards import ExportedShard, exported_shard

OPTIONS: dict[str, Any] = {"schemes": [], "ignore": None, "group_size": 128}
ONE, TWO, DENSE = "model-00001-of-00002", "model-00002-of-00002", "2_Dense/model"
ATTENTION = "model.layers.0.self_attn."
TABLES = {
    ONE: {
        "model.embed_tokens.weight": ("BF16", (4096, 256)),
        f"{ATTENTION}q_proj.weight": ("BF16", (512, 256)),
    },
    TWO: {
        f"{ATTENTION}k_proj.weight": ("BF16", (128, 256)),
        "model.layers.0.mlp.down_proj.weight": ("F32", (256, 256)),
    },
    DENSE: {"linear.weight": ("F32", (256, 256))},
}


@pytest.fixture(autouse=True)
def description(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shards = [SimpleNamespace(file=f"{n}.safetensors", tensors=t) for n, t in TABLES.items()]
    found = SimpleNamespace(shards=shards)
    monkeypatch.setattr(exported_shards, "description_of", lambda name: found)
    caches = (exported_shards._needed, exported_shards._selection)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def job(shard: str, scheme: str, digests: str = "123", **options: Any) -> ExportedShard:
    jobs = tuple(
        ShardJob(f"results/a/model/{name}.safetensors", digest, (), (), 1, 1, 1, 0, 1, False, False)
        for name, digest in zip(TABLES, digests, strict=True)
    )
    build = Build("a", f"build {digests}", jobs, {})
    return exported_shard(
        build, f"{shard}.safetensors", scheme, OPTIONS | options, Paths("results")
    )


def test_what_shares_a_scale_is_read_where_the_scheme_has_one() -> None:
    first, second = (f"results/a/model/{name}.safetensors" for name in (ONE, TWO))
    assert (job(ONE, "nvfp4a16").source, job(ONE, "nvfp4a16").others) == (first, (second,))
    assert job(TWO, "nvfp4a16").others == (first,)
    assert job(ONE, "w4a16").others == job(DENSE, "nvfp4a16").others == ()


def test_only_what_a_shard_is_made_of_makes_it_run_again() -> None:
    assert job(ONE, "w4a16").identity == job(ONE, "w4a16", "1x3").identity
    assert job(ONE, "w4a16").identity != job(ONE, "w4a16", "x23").identity
    assert job(ONE, "nvfp4a16").identity != job(ONE, "nvfp4a16", "1x3").identity
    assert job(ONE, "nvfp4a16").identity == job(ONE, "nvfp4a16", "12x").identity
    assert job(ONE, "w4a16").identity != job(ONE, "w4a16", group_size=32).identity
    assert job(ONE, "w4a16").identity != job(ONE, "w4a16", ignore=["lm_head"]).identity


def test_memory_follows_the_largest_matrix_that_is_quantised() -> None:
    base = job(DENSE, "w4a16").memory  # nothing of a module beside the model is
    assert job(ONE, "w4a16").memory - base == 14 * 512 * 256 * 2
    assert job(TWO, "w4a16").memory - base == 14 * 256 * 256 * 4
