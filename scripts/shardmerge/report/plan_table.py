"""A plan as one HTML page without anything outside it: how a model is made, shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shardmerge.base.text import human_bytes, plural
from shardmerge.base.weightfolders import shard_name
from shardmerge.plan.description import BuildDescription, DescribedSource, load_description
from shardmerge.plan.plan import Plan
from shardmerge.recipe.naming import short_names, shortener
from shardmerge.report import plan_facts
from shardmerge.report.coefficients import coefficients
from shardmerge.report.html import heading, html_table, page
from shardmerge.report.plan_facts import Shard
from shardmerge.report.summary import cells_of, summarize


def plan_page(plan: Plan, name: str) -> str:
    """Return the page of one build.

    Args:
        plan: Its builds' descriptions and specifications lie where ``planning`` keeps them.
        name: Of the build.
    """
    build = plan.builds[name]
    found = load_description(build.digest)
    shards = plan_facts.shards(build)
    shorten = shortener(short_names(found.sources))
    parts = [
        html_table((), _facts(plan, found, shards)),
        heading("What the tensors are made of"),
        html_table(
            ("layers", "modules", "value"),
            cells_of(summarize(coefficients(found.coefficients), shorten)),
        ),
        heading("Sources"),
        html_table(("model", "from", "at"), _sources(found.sources)),
        heading("Shards"),
        _shards(shards),
    ]
    return page(name, parts)


def _facts(plan: Plan, found: BuildDescription, shards: Sequence[Shard]) -> list[tuple[str, str]]:
    written = sum(shard.job.bytes_written for shard in shards)
    read = sum(shard.job.bytes_read for shard in shards)
    copies = sum(shard.copied is not None for shard in shards)
    vectors = {path for shard in shards for path in shard.job.deltas}
    tensors = plural(sum(shard.tensors for shard in shards), "tensor")
    rows = [
        (
            "model",
            f"{human_bytes(written)}, {tensors}, {found.dtype or 'types as in the sources'}",
        ),
        ("shards", f"{len(shards)}, {copies} of them copies"),
        ("read by its jobs", human_bytes(read)),
        ("stored task vectors", plural(len(vectors), "shard") if vectors else "none"),
        ("numerics", found.numerics),
    ]
    stages = [f"{stage.name} ({stage.method})" for stage in found.stages]
    rows.append(("documents", ", ".join(stages)))
    rows += [("warning", warning) for warning in plan.warnings]
    return rows


def _sources(sources: Mapping[str, DescribedSource]) -> Iterable[tuple[str, str, str]]:
    for key, source in sources.items():
        yield key, source.store.title, source.commit or "-"


def _shards(shards: Sequence[Shard]) -> str:
    header = ("file", "size", "tensors", "reads", "made from")
    rows = []
    for shard in shards:
        job = shard.job
        files = [path.rsplit("/", 1)[-1] for path in (*job.sources, *job.deltas)]
        origin = f"copy of {files[0]}" if shard.copied else plural(len(files), "file")
        file = shard_name(job.output)
        rows.append((file, human_bytes(job.bytes_written), f"{shard.tensors:,}",
                     human_bytes(job.bytes_read), origin))  # fmt: skip
    return html_table(header, rows, numbers=(1, 2, 3))
